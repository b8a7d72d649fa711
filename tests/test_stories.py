"""The small language models of notebook 14, against llama2.c's arithmetic written out in NumPy."""

import struct

import numpy as np
import pytest
import torch

from ttm_lab.course import stories

WIDTH, HIDDEN, LAYERS, HEADS, SHARED, VOCABULARY, LENGTH = 8, 12, 2, 4, 2, 11, 16
SIZE = WIDTH // HEADS


@pytest.fixture
def model_file(tmp_path):
    """A file of llama2.c's first format with random weights, and these weights."""
    draw = np.random.default_rng(0)
    shapes = {
        "tokens": (VOCABULARY, WIDTH),
        "attention_norm": (LAYERS, WIDTH),
        "query": (LAYERS, WIDTH, WIDTH),
        "key": (LAYERS, SHARED * SIZE, WIDTH),
        "value": (LAYERS, SHARED * SIZE, WIDTH),
        "out": (LAYERS, WIDTH, WIDTH),
        "norm": (LAYERS, WIDTH),
        "w1": (LAYERS, HIDDEN, WIDTH),
        "w2": (LAYERS, WIDTH, HIDDEN),
        "w3": (LAYERS, HIDDEN, WIDTH),
        "last_norm": (WIDTH,),
        "rotations": (2, LENGTH, SIZE // 2),  # in the file, but computed by every reader
    }
    weights = {name: draw.normal(0, 0.6, shape).astype("f4") for name, shape in shapes.items()}
    header = struct.pack("7i", WIDTH, HIDDEN, LAYERS, HEADS, SHARED, VOCABULARY, LENGTH)
    path = tmp_path / "model.bin"
    path.write_bytes(header + b"".join(part.tobytes() for part in weights.values()))
    return path, {name: part.astype(float) for name, part in weights.items()}


def by_hand(w, tokens):
    """Logits of each position, one at a time, as llama2.c computes them."""

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + 1e-5) * scale

    def turned(x, place):
        x = x.copy()
        for i in range(0, len(x), 2):
            angle = place / 10000 ** ((i % SIZE) / SIZE)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            x[i : i + 2] = turn @ x[i : i + 2]
        return x

    keys, values, found = [[] for _ in range(LAYERS)], [[] for _ in range(LAYERS)], []
    for place, token in enumerate(tokens):
        x = w["tokens"][token]
        for k in range(LAYERS):
            y = norm(x, w["attention_norm"][k])
            query = turned(w["query"][k] @ y, place).reshape(HEADS, SIZE)
            keys[k].append(turned(w["key"][k] @ y, place).reshape(SHARED, SIZE))
            values[k].append((w["value"][k] @ y).reshape(SHARED, SIZE))
            heads = []
            for head in range(HEADS):
                group = head // (HEADS // SHARED)
                score = np.array([query[head] @ key[group] for key in keys[k]]) / np.sqrt(SIZE)
                score = np.exp(score - score.max())
                seen = zip(score / score.sum(), values[k], strict=True)
                heads.append(sum(share * value[group] for share, value in seen))
            x = x + w["out"][k] @ np.concatenate(heads)
            y = norm(x, w["norm"][k])
            gate = w["w1"][k] @ y
            x = x + w["w2"][k] @ (gate / (1 + np.exp(-gate)) * (w["w3"][k] @ y))
        found.append(w["tokens"] @ norm(x, w["last_norm"]))
    return np.array(found)


def test_a_file_of_llama2c_gives_its_logits(model_file):
    path, weights = model_file
    tokens = [1, 5, 3, 3, 10, 0]
    with torch.no_grad():
        found = stories.load_llama(path)(torch.tensor([tokens]))[0]
    np.testing.assert_allclose(found, by_hand(weights, tokens), rtol=1e-4, atol=1e-5)


def test_what_a_model_writes_is_drawn_from_its_logits(model_file):
    model = stories.load_llama(model_file[0])
    draw = torch.Generator().manual_seed(0)
    greedy = stories.write(model, 2, 10, generator=draw, temperature=0)
    assert greedy[0].tolist() == greedy[1].tolist()
    with torch.no_grad():
        assert model(greedy[:, :-1]).argmax(-1).tolist() == greedy[:, 1:].tolist()
    many = stories.write(model, 20_000, 2, generator=draw, temperature=2.0)
    share = torch.bincount(many[:, 1], minlength=VOCABULARY) / 20_000
    with torch.no_grad():
        chances = (model(many[:1, :1])[0, 0] / 2).softmax(-1)
    assert torch.allclose(share, chances, atol=0.02)


def test_a_file_of_another_kind_is_refused(model_file, tmp_path):
    content = model_file[0].read_bytes()
    for wrong, words in (
        (struct.pack("7i", 8, 12, 2, 4, 2, -11, 16) + content[28:], "not llama2.c's first format"),
        (content[:-4], "its header asks for"),
    ):
        path = tmp_path / "wrong.bin"
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=words):
            stories.load_llama(path)


def test_tokens_become_text(tmp_path):
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"<0xE2>", b"<0x80>", b"<0x94>", b" Tim", b" ran"]
    packed = (struct.pack("fi", 0.0, len(piece)) + piece for piece in pieces)
    path = tmp_path / "tok.bin"
    path.write_bytes(struct.pack("i", 6) + b"".join(packed))
    known = stories.load_tokens(path, count=8)
    tokens = torch.tensor([1, 6, 7, 3, 4, 5, 1, 6])
    assert stories.read(tokens, known) == "Tim ran—\n Tim"
