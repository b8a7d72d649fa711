"""Small language models in plain torch: the Llama type, and Karpathy's file of a real one.

Notebook 14's models: characters of the course's own text, and the stories of ``stories260K.bin``,
a model of llama2.c (github.com/karpathy/llama2.c, MIT licence).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

START = 1  # the token that stands before every story


@dataclass(frozen=True)
class Shape:
    """Size of a Llama-type model; by default that of ``stories260K.bin``."""

    width: int = 64
    hidden: int = 172
    layers: int = 5
    heads: int = 8
    shared_heads: int = 4  # of keys and values; several heads of queries use one of them
    vocabulary: int = 512
    length: int = 512  # the longest sequence


class Llama(nn.Module):
    """A Llama-type language model: tokens (N, L) to the logits of each next token (N, L, K).

    Root-mean-square norms, rotary positions, grouped queries, a gated feed-forward part, and one
    matrix for the tokens that come in and go out, as in llama2.c.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        size = shape.width // shape.heads
        speeds = 10000 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(shape.length), speeds)
        self.register_buffer("turn", torch.stack([angles.cos(), angles.sin()]), persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 if parameter is self.tokens.weight else 0.05)

    def forward(self, tokens: Tensor, past: list | None = None) -> Tensor:
        """Logits (N, L, K); ``past`` is a list of earlier keys and values, which grows in place."""
        start = past[0][0].shape[2] if past else 0
        turn = self.turn[:, start : start + tokens.shape[1]]
        x = self.tokens(tokens)
        for place, layer in enumerate(self.layers):
            x = layer(x, turn, past, place)
        return F.linear(self.norm(x), self.tokens.weight)


class _Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        size = shape.width // shape.heads
        self.heads, self.shared_heads = shape.heads, shape.shared_heads
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.query = nn.Linear(shape.width, shape.heads * size, bias=False)
        self.key = nn.Linear(shape.width, shape.shared_heads * size, bias=False)
        self.value = nn.Linear(shape.width, shape.shared_heads * size, bias=False)
        self.out = nn.Linear(shape.heads * size, shape.width, bias=False)
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)

    def forward(self, x: Tensor, turn: Tensor, past: list | None, place: int) -> Tensor:
        y = self.attention_norm(x)
        query, key, value = (
            part(y).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, heads in (
                (self.query, self.heads),
                (self.key, self.shared_heads),
                (self.value, self.shared_heads),
            )
        )
        query, key = _rotate(query, turn), _rotate(key, turn)
        if past is not None:
            if place < len(past):
                key = torch.cat([past[place][0], key], 2)
                value = torch.cat([past[place][1], value], 2)
                past[place] = key, value
            else:
                past.append((key, value))
        copies = self.heads // self.shared_heads
        found = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(copies, 1),
            value.repeat_interleave(copies, 1),
            is_causal=query.shape[2] > 1,
        )
        x = x + self.out(found.transpose(1, 2).flatten(2))
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn neighbouring pairs of features by their position's angles (rotary positions)."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turn
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def load_llama(path: str | Path) -> Llama:
    """The model in a file of llama2.c's first format (seven numbers, then float32 weights).

    Raises:
        ValueError: the file is of another format, or its size is not what its header says.
    """
    content = Path(path).read_bytes()
    names = "width", "hidden", "layers", "heads", "shared_heads", "vocabulary", "length"
    header = dict(zip(names, struct.unpack("7i", content[:28]), strict=True))
    if min(header.values()) <= 0 or max(header.values()) > 2**20:
        raise ValueError(
            f"{path} begins with {header}, which is not llama2.c's first format with one matrix "
            "for tokens in and out; stories260K.bin is"
        )
    model = Llama(Shape(**header))
    size = header["width"] // header["heads"]
    parts = [model.tokens.weight]
    order = "attention_norm query key value out norm gate down up"
    for name in order.split():
        parts += [getattr(layer, name).weight for layer in model.layers]
    parts.append(model.norm.weight)
    rotations = header["length"] * size * 4  # bytes: cosines and sines, which we compute
    expected = 28 + 4 * sum(part.numel() for part in parts) + rotations
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes; its header asks for {expected}")
    rest = torch.frombuffer(bytearray(content[28:]), dtype=torch.float32)
    with torch.no_grad():
        for part in parts:
            part.copy_(rest[: part.numel()].view_as(part))
            rest = rest[part.numel() :]
    return model.eval()


def load_tokens(path: str | Path, count: int = 512) -> list[bytes]:
    """The pieces of text in a tokenizer file of llama2.c, such as ``tok512.bin``, by token."""
    content = Path(path).read_bytes()
    pieces, place = [], 4  # after the length of the longest piece
    for _ in range(count):
        (length,) = struct.unpack("i", content[place + 4 : place + 8])  # after a score
        pieces.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    # The first three stand for nothing, and <0x41> for the byte 41 (hexadecimal).
    return [b"", b"", b""] + [
        bytes([int(piece[3:5], 16)]) if piece[:3] == b"<0x" and len(piece) == 6 else piece
        for piece in pieces[3:]
    ]


def read(tokens: Tensor, pieces: list[bytes]) -> str:
    """The text of a sequence of tokens; a new story starts on a new line."""
    found = [b"\n" if token == START else pieces[token] for token in tokens.tolist()]
    return b"".join(found).decode("utf-8", errors="replace").strip()


@torch.no_grad()
def write(
    model: Llama,
    count: int,
    length: int,
    *,
    generator: torch.Generator,
    first: int = START,
    temperature: float = 1.0,
) -> Tensor:
    """Let a model write ``count`` texts: tokens (count, length), of which the first is given.

    ``temperature`` 0 takes the likeliest token each time, so that all texts are the same.
    """
    tokens = torch.full((count, length), first)
    past = []
    for place in range(1, length):
        logits = model(tokens[:, place - 1 : place], past)[:, -1]
        if temperature == 0:
            tokens[:, place] = logits.argmax(-1)
        else:
            chances = (logits / temperature).softmax(-1)
            tokens[:, place] = chances.multinomial(1, generator=generator).squeeze(1)
    return tokens
