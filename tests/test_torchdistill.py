"""TTM and WTTM in torchdistill's own configuration files."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from ttm_lab.data import load_dataset
from ttm_lab.losses import TTMLoss, WTTMLoss, ttm_loss, wttm_loss
from ttm_lab.models import create_model


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", seed=0)


@pytest.fixture(scope="module")
def teacher():
    return create_model("cnn_large", 10, seed=1)


CONFIGURATION = """
dependencies: [{name: ttm_lab.torchdistill}]
train:
  num_epochs: 1
  train_data_loader:
    dataset_id: train
    sampler: {class_or_func: !import_get {key: torch.utils.data.SequentialSampler}}
    kwargs: {batch_size: 32, num_workers: 0, drop_last: False}
    requires_supp: False
  teacher: {requires_grad: False, forward_proc: forward_batch_only}
  student: {forward_proc: forward_batch_only}
  optimizer: {key: SGD, kwargs: {lr: 0.05}}
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
        ce:
          criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {is_from_teacher: False, module_path: ., io: output}
              target: {uses_label: True}
          weight: 1.0
        distill:
          criterion: {key: NAME, kwargs: {temperature: 4.0}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {is_from_teacher: False, module_path: ., io: output}
              target: {is_from_teacher: True, module_path: ., io: output}
          weight: 3.0
"""


@pytest.mark.parametrize("loss", [ttm_loss, wttm_loss])
def test_torchdistills_trainer_takes_our_losses_from_its_files(
    torchdistill, data, teacher, loss, tmp_path
):
    from torchdistill.common.main_util import import_dependencies
    from torchdistill.common.yaml_util import load_yaml_file
    from torchdistill.core.distillation import get_distillation_box

    name = {ttm_loss: TTMLoss, wttm_loss: WTTMLoss}[loss].__name__
    file = tmp_path / "train.yaml"
    file.write_text(CONFIGURATION.replace("NAME", name))
    configuration = load_yaml_file(str(file))
    import_dependencies(configuration["dependencies"])
    images, labels = data.train.images[:64], data.train.labels[:64]
    student = create_model("cnn_small", 10, seed=0)
    box = get_distillation_box(
        teacher.eval(),
        student.train(),
        {"train": TensorDataset(images, labels)},
        configuration["train"],
        torch.device("cpu"),
        None,
        False,
        1,
    )
    box.pre_epoch_process(epoch=0)
    for batch, targets in box.train_data_loader:
        box.pre_forward_process()
        box.post_forward_process(loss=box.forward_process(batch, targets, None))
    box.clean_modules()

    expected = create_model("cnn_small", 10, seed=0).train()
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.05)
    for batch, targets in zip(images.split(32), labels.split(32), strict=True):
        z = expected(batch)
        with torch.no_grad():
            v = teacher(batch)
        optimiser.zero_grad()
        (F.cross_entropy(z, targets) + 3 * loss(z, v, 4.0)).backward()
        optimiser.step()
    for got, wanted in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)
