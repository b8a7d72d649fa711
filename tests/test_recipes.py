"""The recipes of docs/recipes.md, word for word, against independent computations.

`make test-recipes` has every library that they need, and TTM_LAB_RECIPES then makes a missing one
a failure; elsewhere its recipes skip.
"""

import copy
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ttm_lab.files import find_root

ROOT = find_root(__file__)
RECIPES = {
    section.splitlines()[0]: re.findall(r"^```\w+\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    for section in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").split("\n## ")[1:]
}
T, BETA = 1.5, 3.0
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}  # read as they are imported


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


def needs(*packages):
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing) and not os.environ.get("TTM_LAB_RECIPES"),
        reason=f"needs {', '.join(missing)}: make test-recipes",
    )


def load(title):
    """What a recipe defines."""
    (text,) = RECIPES[title]
    names = {"__name__": "recipe"}
    exec(compile(text, f"docs/recipes.md, {title}", "exec"), names)
    return SimpleNamespace(**names)


def distances(z, v, temperature=T, *, weighted):
    """TTM or WTTM of each row from probabilities in float64, with nothing of the package."""
    p, q = (v.double() / temperature).softmax(-1), z.double().softmax(-1)
    each = (p * (p.log() - q.log())).sum(-1)
    weight = (v.double().softmax(-1) ** (1 / temperature)).sum(-1) if weighted else 1
    return weight * each


def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Flatten(), nn.Linear(12, 5)) for _ in range(2)]


def pictures():
    torch.manual_seed(1)
    return torch.randn(8, 3, 2, 2), torch.arange(8) % 5


def stepped(student, loss, rate=0.1):
    """A copy of the student after one step of plain gradient descent on `loss(student)`."""
    student = copy.deepcopy(student)
    for p, slope in zip(
        student.parameters(),
        torch.autograd.grad(loss(student), student.parameters()),
        strict=True,
    ):
        p.data -= rate * slope
    return student


def assert_near(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def assert_same(found, expected, **tolerance):
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_each_recipe_is_one_short_piece_of_code_and_is_tested():
    source = (ROOT / "tests/test_recipes.py").read_text(encoding="utf-8")
    for title, pieces in RECIPES.items():
        assert len(pieces) == 1, title
        assert len(pieces[0].splitlines()) <= 25, title
        assert f'"{title}"' in source, title
    assert len(RECIPES) > 10


def test_plain_loop():
    (student, teacher), (images, labels) = networks(), pictures()

    def loss(model):
        wttm = distances(model(images), teacher(images).detach(), weighted=True)
        return F.cross_entropy(model(images), labels) + BETA * wttm.mean()

    expected = stepped(student, loss)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    load("A plain loop").train(student, teacher, [(images, labels)], optimizer, T, BETA)
    assert_same(student, expected)


@needs("timm")
@pytest.mark.parametrize("title", ["timm: TTM by its own task", "timm: WTTM by a subclass"])
def test_timm(title):
    import timm

    student, teacher = (
        timm.create_model(
            "test_resnet",
            num_classes=5,
            pretrained_cfg_overlay={"mean": (mean,) * 3, "std": (0.5,) * 3},
        )
        for mean in (0.5, 0.3)
    )
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    weighted = title == "timm: WTTM by a subclass"
    if weighted:
        weights = {"task_loss_weight": 1.0, "distill_loss_weight": BETA, "temperature": T}
        task = load(title).WTTMTask(student, teacher, nn.CrossEntropyLoss(), **weights)
    else:
        task = load(title).ttm_task(student, teacher, T, BETA)
    with torch.no_grad():
        v = teacher((images * 0.5 + 0.5 - 0.3) / 0.5)  # each network sees its own normalisation
    found = task.eval()(images, labels)
    distance = distances(found["output"], v, weighted=weighted).mean()
    assert_near(found["kd_loss"], distance)
    expected = F.cross_entropy(found["output"], labels) + BETA * distance
    assert_near(found["loss"], expected)
    torch.testing.assert_close(found["output"], student(images))


@needs("torchdistill")
@pytest.mark.parametrize("name", ["TTMLoss", "WTTMLoss"])
def test_torchdistill(name):
    from torchdistill.common.main_util import import_dependencies
    from torchdistill.core.distillation import get_distillation_box

    (text,) = RECIPES["torchdistill"]
    given = yaml.safe_load(text.replace("WTTMLoss", name))
    import_dependencies(given["dependencies"])
    sequential = {"class_or_func": torch.utils.data.SequentialSampler}
    loader = {"dataset_id": "train", "sampler": sequential, "kwargs": {"batch_size": 8}}
    training = {
        "num_epochs": 1,
        "train_data_loader": {**loader, "requires_supp": False},
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1}},
        "criterion": given["criterion"],
    }
    (student, teacher), (images, labels) = networks(), pictures()

    def loss(model):
        distance = distances(model(images), teacher(images), 4.0, weighted=name == "WTTMLoss")
        return F.cross_entropy(model(images), labels) + 3 * distance.mean()

    expected = stepped(student, loss)
    parts = {"train": TensorDataset(images, labels)}
    options = training, torch.device("cpu"), None, False, 1
    box = get_distillation_box(teacher, student, parts, *options)
    box.pre_epoch_process(epoch=0)
    for batch, targets in box.train_data_loader:
        box.pre_forward_process()
        box.post_forward_process(loss=box.forward_process(batch, targets, None))
    box.clean_modules()
    assert_same(student, expected)


# Language models --------------------------------------------------------------------------------

WORDS = ["<pad>", "<eos>", "<unk>", "user", "assistant", *(f"w{i}" for i in range(27))]


def language_model(vocabulary=32, seed=0, **options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(vocab_size=vocabulary, **sizes, **heads, **ends, **options)
    return LlamaForCausalLM(config).eval()


def small_bert(**options):
    from transformers import BertConfig

    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**sizes, **layers, **dropout, **options)


def sequences(count=4, length=7):
    """Token ids, which count, and labels; each sequence has padding and a prompt of its own."""
    torch.manual_seed(2)
    ids, places = torch.randint(3, len(WORDS), (count, length)), torch.arange(length)
    attention = places < torch.arange(length, length - count, -1)[:, None]
    prompt = places < torch.arange(1, count + 1)[:, None]
    labels = ids.masked_fill(prompt | ~attention, -100)
    return {"input_ids": ids, "attention_mask": attention.long(), "labels": labels}


def rows_of(batch):
    return [{k: v[i] for k, v in batch.items()} for i in range(len(batch["labels"]))]


def shifted(model, batch):
    """The logits of the tokens that count, row by row, each from the place before it."""
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    return logits[:, :-1][batch["labels"][:, 1:] != -100]


def distance_of(student, teacher, batch, temperature=T, *, weighted):
    z, v = shifted(student, batch), shifted(teacher, batch).detach()
    return distances(z, v[:, : z.shape[-1]], temperature, weighted=weighted).mean()


@needs("transformers", "accelerate")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_transformers_trainer(bfloat16, tmp_path):
    """Two accumulated halves of a batch make the step of the whole, whatever tokens each holds."""
    from transformers import TrainingArguments

    student, teacher, batch = language_model(), language_model(40, seed=1), sequences()
    if bfloat16:
        student, teacher = student.bfloat16(), teacher.bfloat16()

    def loss(model):
        labels = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
        distance = distance_of(model, teacher, batch, weighted=True)
        return F.cross_entropy(shifted(model, batch).double(), labels) + BETA * distance

    expected = stepped(student, loss)
    steps = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    trainer = load("transformers: Trainer").WTTMTrainer(
        student,
        TrainingArguments(str(tmp_path), **steps, **PLAIN, **QUIET),
        train_dataset=rows_of(batch),
        teacher=teacher,
        temperature=T,
        beta=BETA,
    )
    trainer.train()
    assert_same(student, expected, **({"rtol": 0.02, "atol": 0.01} if bfloat16 else {}))


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    return made


def conversations():
    from datasets import Dataset

    talks = [("w1 w2", "w3 w4 w5"), ("w6", "w7 w8"), ("w9 w10 w11", "w12"), ("w13", "w14 w15")]
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
            }
            for question, answer in talks
        ]
    )


@needs("trl")
@pytest.mark.parametrize("title", ["TRL: TTM by its own trainers", "TRL: WTTM in GKDTrainer"])
def test_trl_gkd(title, tmp_path):
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    found, student, teacher = load(title), language_model(), language_model(seed=1)
    weighted = title == "TRL: WTTM in GKDTrainer"
    kind = found.WTTMGKDTrainer if weighted else GKDTrainer
    temperature = found.TEMPERATURE if weighted else T
    before = copy.deepcopy(student)
    settings = {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "max_steps": 1, "bf16": False}
    trainer = kind(
        student,
        teacher if weighted else found.tempered(teacher, T),
        GKDConfig(
            str(tmp_path), **settings, per_device_train_batch_size=4, **PLAIN, **QUIET, seed=3
        ),
        train_dataset=conversations(),
        processing_class=tokenizer(),
    )
    (batch,) = trainer.get_train_dataloader()
    assert 0 < (batch["labels"] != -100).sum() < batch["labels"].numel()

    def loss(model):
        return distance_of(model, teacher, batch, temperature, weighted=weighted)

    expected = stepped(before, loss)
    assert_near(trainer.compute_loss(student, batch), loss(before))
    trainer.train()
    assert_same(student, expected)


@needs("trl")
@pytest.mark.parametrize("tied", [False, True])
def test_trl_tempered_teachers_leave_the_embedding(tied):
    teacher, ids = language_model(seed=1, tie_word_embeddings=tied), sequences()["input_ids"]
    tempered = load("TRL: TTM by its own trainers").tempered(teacher, T)
    torch.testing.assert_close(tempered(ids).logits, teacher(ids).logits / T)


@needs("trl")
@pytest.mark.parametrize(
    "title", ["TRL: TTM by its own trainers", "TRL: WTTM in DistillationTrainer"]
)
def test_trl_distillation(title, tmp_path):
    """One step on what the student writes: its batch is kept, and its step made anew."""
    from trl import DistillationConfig, DistillationTrainer

    found, student, teacher = load(title), language_model(), language_model(seed=1)
    weighted = title == "TRL: WTTM in DistillationTrainer"
    temperature = found.TEMPERATURE if weighted else T
    batches = []

    class Kept(found.WTTMDistillationTrainer if weighted else DistillationTrainer):
        def _compute_loss(self, model, inputs, *rest):
            batches.append(inputs)
            return super()._compute_loss(model, inputs, *rest)

    settings = {"beta": 0.0, "max_completion_length": 6, "max_steps": 1, "bf16": False}
    trainer = Kept(
        student,
        teacher if weighted else found.tempered(teacher, T),
        DistillationConfig(
            str(tmp_path), **settings, per_device_train_batch_size=4, **PLAIN, **QUIET, seed=3
        ),
        train_dataset=conversations().map(
            lambda row: {"prompt": row["messages"][:1]}, remove_columns="messages"
        ),
        processing_class=tokenizer(),
    )
    before = copy.deepcopy(student)
    trainer.train()
    (inputs,) = batches
    ids, attention = (
        torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1)
        for name in ("ids", "mask")
    )
    counts = inputs["completion_mask"] != 0
    skipped = torch.full_like(inputs["prompt_ids"], -100)
    labels = torch.cat([skipped, inputs["completion_ids"].masked_fill(~counts, -100)], 1)
    batch = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    assert 4 < counts.sum() <= counts.numel()
    expected = stepped(
        before, lambda m: distance_of(m, teacher, batch, temperature, weighted=weighted)
    )
    assert_same(student, expected)


@needs("liger_kernel")
@pytest.mark.parametrize("weighted", [False, True])
def test_liger(weighted, monkeypatch):
    found = load("Liger: WTTM from hidden states")
    if not weighted:  # the text beside it: another loss in the same place
        from ttm_lab import losses

        namespace = found.FusedWTTM.distillation_loss_fn.__globals__
        monkeypatch.setitem(namespace, "wttm_loss", losses.ttm_loss)
    torch.manual_seed(0)
    hidden, weights = torch.randn(9, 6, requires_grad=True), torch.randn(20, 6, requires_grad=True)
    teacher = torch.randn(9, 4), torch.randn(20, 4)
    labels = torch.arange(9).masked_fill(torch.arange(9) % 4 == 0, -100)
    z, v, counts = hidden @ weights.t(), teacher[0] @ teacher[1].t(), labels != -100
    expected = F.cross_entropy(z, labels) + 3 * (
        distances(z, v, found.TEMPERATURE, weighted=weighted)[counts].mean()
    )
    value = found.FusedWTTM.apply(hidden, weights, *teacher, labels)
    assert_near(value, expected)
    for got, wanted in zip(
        torch.autograd.grad(2 * value, (hidden, weights)),
        torch.autograd.grad(2 * expected, (hidden, weights)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@needs("sentence_transformers")
@pytest.mark.parametrize("weighted", [False, True])
def test_sentence_transformers(weighted, tmp_path):
    """Stock TTM and the recipe's WTTM, from the texts through a network to the gradient."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses, modules
    from transformers import BertModel

    torch.manual_seed(0)
    BertModel(small_bert()).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    words = modules.Transformer(str(tmp_path))
    pooling = modules.Pooling(words.get_embedding_dimension())
    model = SentenceTransformer(modules=[words, pooling]).eval()
    kind = load("sentence-transformers").WTTMScoreLoss if weighted else losses.DistillKLDivLoss
    loss = kind(model, student_temperature=1.0, teacher_temperature=T)
    texts = [["w1 w2", "w3"], ["w4 w5", "w6 w7"], ["w8", "w9"], ["w1 w2 w3", "w10"]]
    features, scores = [model.preprocess(column) for column in texts], torch.randn(2, 3)
    found = loss(features, scores)
    query, *others = (model(column)["sentence_embedding"] for column in features)
    z = torch.stack([(query * other).sum(-1) for other in others], 1)
    expected = distances(z, scores, weighted=weighted).mean()
    assert_near(found, expected)
    first = next(p for p in model.parameters() if p.requires_grad)
    slopes = (torch.autograd.grad(x, first, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


@needs("transformers", "accelerate")
def test_token_classification(tmp_path):
    from transformers import BertForTokenClassification, TrainingArguments

    torch.manual_seed(0)
    student, teacher = (BertForTokenClassification(small_bert(num_labels=4)) for _ in range(2))
    batch = sequences()
    counts = batch["labels"] != -100
    batch["labels"] = torch.where(counts, batch["labels"] % 4, -100)
    inputs = batch["input_ids"], batch["attention_mask"]

    def loss(model):
        z, v = model(*inputs).logits[counts], teacher(*inputs).logits[counts].detach()
        distance = distances(z, v, weighted=True).mean()
        return F.cross_entropy(z, batch["labels"][counts]) + BETA * distance

    expected = stepped(student, loss)
    settings = {"per_device_train_batch_size": 4, "max_steps": 1}
    trainer = load("Token classification").WTTMTokenTrainer(
        student,
        TrainingArguments(str(tmp_path), **settings, **PLAIN, **QUIET),
        train_dataset=rows_of(batch),
        teacher=teacher,
        temperature=T,
        beta=BETA,
    )
    trainer.train()
    assert_same(student, expected)


# Several processes ------------------------------------------------------------------------------


def fabric_share():
    """One of two processes: its share of the pictures, strided, and the student afterwards."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    (student, teacher), data = networks(), TensorDataset(*pictures())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = load("Lightning Fabric on several processes")
    found.train(fabric, student, teacher, optimizer, DataLoader(data, 4), T, BETA)
    return fabric.global_rank, student


def accelerate_share():
    """One of two processes, whose shares hold different numbers of tokens."""
    from accelerate import Accelerator

    accelerator, (student, teacher) = Accelerator(cpu=True), networks()
    data = TensorDataset(pictures()[0], COUNTS)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    found = load("Accelerate on several processes, with a mask")
    found.train(accelerator, student, teacher, optimizer, DataLoader(data, 4), T)
    return accelerator.process_index, student


COUNTS = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import test_recipes
torch.set_num_threads(1)
rank, student = getattr(test_recipes, sys.argv[2])()
torch.save(student.state_dict(), f"{sys.argv[3]}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    "share",
    [
        pytest.param("fabric_share", marks=needs("lightning")),
        pytest.param("accelerate_share", marks=needs("accelerate")),
    ],
)
def test_two_processes_step_like_one(share, tmp_path):
    (student, teacher), (images, labels) = networks(), pictures()

    def loss(model):
        each = distances(model(images), teacher(images), weighted=True)
        if share == "accelerate_share":
            return each[COUNTS].mean()
        return F.cross_entropy(model(images), labels) + BETA * each.mean()

    expected = stepped(student, loss)
    script = tmp_path / "share.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(script), str(ROOT / "tests"), share, str(tmp_path)]
    cpu = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=os.environ | cpu, cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        student.load_state_dict(torch.load(tmp_path / f"{rank}.pt"))
        assert_same(student, expected)


# Formulas alone ---------------------------------------------------------------------------------


def test_several_labels():
    """Each label's two-point distribution by hand."""
    torch.manual_seed(0)
    z, v = torch.randn(2, 4, 3, requires_grad=True), 2 * torch.randn(2, 4, 3)
    found = load("Several labels at once").multi_label_loss(z, v, T)
    p, q, full = (v.double() / T).sigmoid(), z.double().sigmoid(), v.double().sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    expected = ((full ** (1 / T) + (1 - full) ** (1 / T)) * each).mean()
    assert_near(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (found, expected)))


def test_temperature_for_each_sample():
    torch.manual_seed(0)
    z, v, temperatures = torch.randn(6, 9), 3 * torch.randn(6, 9), torch.linspace(0.5, 8, 6)
    found = load("A temperature for each sample").wttm_loss_of_each(z, v, temperatures)
    each = [
        distances(a, b, t, weighted=True)
        for a, b, t in zip(z, v, temperatures.tolist(), strict=True)
    ]
    assert_near(found, torch.stack(each).mean())


@pytest.mark.parametrize("kept", [1, 8, 500])
def test_sparse_teacher(kept, tmp_path):
    found, path = load("A sparse teacher on disk"), tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    student = torch.randn(3, 5, 500, requires_grad=True)
    teacher, mask = 3 * torch.randn(3, 5, 500), torch.rand(3, 5) > 0.3
    teacher[~mask] = torch.nan
    found.write(path, teacher, T, kept)
    value = found.sparse_wttm_loss(student, path, mask)
    z, v = student[mask], teacher[mask].double()
    full = distances(z, v, weighted=True).mean()
    p, q, tokens = (v / T).softmax(-1), z.double().softmax(-1), v.topk(kept).indices
    p_kept, q_kept = (x.gather(-1, tokens) for x in (p, q))
    p_rest, q_rest = (x.scatter(-1, tokens, 0).sum(-1) for x in (p, q))
    each = (p_kept * (p_kept / q_kept).log()).sum(-1)
    if kept < 500:
        each = each + p_rest * (p_rest / q_rest).log()
    exact = ((v.softmax(-1) ** (1 / T)).sum(-1) * each).mean()
    assert_near(value, exact)
    assert 0 < value < full * (1 + 1e-6)
    (slope,) = torch.autograd.grad(value, student)
    assert slope.isfinite().all()
    assert not slope[~mask].any()
