"""Known and unknown pictures before the kept CIFAR-100 networks: AUROC and FPR, score by score.

    python benchmarks/outliers.py --root DIR --model resnet20 --tiny-imagenet DIR --textures DIR \
        --signs DIR --fashion-mnist DIR

Known is CIFAR-100's test part. Unknown are, whole and shrunk to 32 pixels: the validation part of
Tiny-ImageNet-200 (its folder ``val``), ten classes of the Describable Textures Dataset (any folder
of pictures), the test part of GTSRB's traffic signs (any folder of pictures) and the test part of
Fashion-MNIST (the folder of its idx files). Trains nothing.

The null control: CIFAR-100's own test pictures, enlarged to the size of a set's files, coded as
those files are coded (JPEG with the very tables of the set's pictures; grey for Fashion-MNIST), and
shrunk again. They mean what they meant, so their AUROC should be 0.5; what is missing is what a
score sees of files.

``--pictures N`` takes N of every set, evenly spaced: a first look where all of them take too long.
Replaces the rows of ``--model`` and of the teacher in ``data/results/cifar100_outliers.csv``: a row
a network, scale, set and score. ``--keep-examples`` writes, for notebook 13, logits of the first
seed on 200 pictures of every set (``cifar100_outlier_logits.npz``), and 500 of Fashion-MNIST shrunk
to the 8 by 8 pixels and 17 grey levels of the digits (``fashion_mnist_8x8.npz``).
"""

import argparse
import datetime
import gzip
import importlib.metadata
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import machine
from PIL import Image, JpegImagePlugin

from ttm_lab.analysis import evaluate, fit_temperature, predict
from ttm_lab.course import networks, outliers
from ttm_lab.data import Split, load_dataset
from ttm_lab.files import atomic_write, find_root, read_table

SIZE = (32, 32)
KEPT_PICTURES = 200
SOURCES = {  # the sets, and the options that name their folders
    "Tiny-ImageNet": "tiny-imagenet",
    "textures": "textures",
    "traffic signs": "signs",
    "Fashion-MNIST": "fashion-mnist",
}
# Classes of Tiny-ImageNet that are one of CIFAR-100's, a kind of it, or nearly one: our reading of
# the 200 names, each beside the class that a network might rightly see in it.
SHARED = """
n01443537 goldfish: aquarium fish; n01629819 salamander: lizard; n01698640 alligator: crocodile
n01742172 boa: snake; n01774384 black widow: spider; n01774750 tarantula: spider
n01944390 snail: snail; n01945685 slug: snail; n01983481 American lobster: lobster
n01984695 spiny lobster: lobster; n02074367 dugong: seal; n02125311 cougar: leopard
n02129165 lion: lion; n02132136 brown bear: bear; n02165456 ladybug: beetle; n02206856 bee: bee
n02233338 cockroach: cockroach; n02279972 monarch: butterfly; n02281406 sulphur: butterfly
n02364673 guinea pig: hamster; n02403003 ox: cattle; n02410509 bison: cattle
n02437312 dromedary: camel; n02480495 orangutan: chimpanzee; n02481823 chimpanzee: chimpanzee
n02486410 baboon: chimpanzee; n02504458 African elephant: elephant; n02793495 barn: house
n02823428 beer bottle: bottle; n02917067 bullet train: train; n03085013 keyboard: keyboard
n03179701 desk: table; n03201208 dining table: table; n03393912 freight car: train
n03637318 lampshade: lamp; n03649909 lawn mower: lawn mower; n03796401 moving van: pickup truck
n03902125 pay-phone: telephone; n03937543 pill bottle: bottle; n03977966 police van: pickup truck
n03983396 pop bottle: bottle; n04008634 missile: rocket; n04099969 rocking chair: chair
n04146614 school bus: bus; n04311004 steel arch bridge: bridge; n04328186 stopwatch: clock
n04366367 suspension bridge: bridge; n04417672 thatch: house; n04465501 tractor: tractor
n04487081 trolleybus: streetcar; n04532670 viaduct: bridge; n07579787 plate: plate
n07720875 bell pepper: sweet pepper; n07734744 mushroom: mushroom; n07747607 orange: orange
n09193705 alp: mountain; n09246464 cliff: mountain; n09332890 lakeside: sea
n09428293 seashore: sea; n12267677 acorn: oak tree
""".replace("\n", ";")


def shrunk(picture: Image.Image) -> np.ndarray:
    """A picture as (3, 32, 32) uint8."""
    picture = picture.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1)


def spaced(count: int, wanted: int | None) -> np.ndarray:
    """Positions of ``wanted`` of ``count`` pictures, evenly spaced; all where it is None."""
    wanted = count if wanted is None else min(wanted, count)
    return np.linspace(0, count - 1, wanted).astype(int)


def read_folder(folder: str, wanted: int | None) -> tuple[np.ndarray, list[dict]]:
    """Pictures below a folder (N, 3, 32, 32) uint8, and how each of their files is coded."""
    kinds = {".jpg", ".jpeg", ".png", ".ppm"}
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in kinds)
    if not paths:
        raise SystemExit(f"{folder} holds no pictures: give the folder that they lie in")
    pictures, coded = [], []
    for path in (paths[i] for i in spaced(len(paths), wanted)):
        with Image.open(path) as picture:
            how = {"name": path.name, "size": picture.size, "mode": "RGB"}
            if picture.format == "JPEG":
                sampling = JpegImagePlugin.get_sampling(picture)
                how |= {"qtables": picture.quantization, "subsampling": max(sampling, 0)}
                how["mode"] = picture.mode
            pictures.append(shrunk(picture))
            coded.append(how)
    return np.stack(pictures), coded


def fashion_pixels(folder: str, wanted: int | None) -> np.ndarray:
    """Pictures (N, 28, 28) uint8 of Fashion-MNIST's test part."""
    paths = sorted(Path(folder).rglob("t10k-images-idx3-ubyte*"))
    if not paths:
        raise SystemExit(f"{folder} holds no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz")
    data = paths[-1].read_bytes()
    data = gzip.decompress(data) if paths[-1].suffix == ".gz" else data
    pixels = np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels[spaced(len(pixels), wanted)]


def read_fashion(folder: str, wanted: int | None) -> tuple[np.ndarray, list[dict]]:
    """Fashion-MNIST's test part from its idx file, also gzipped, and how its pictures are coded."""
    pixels = fashion_pixels(folder, wanted)
    how = {"size": (28, 28), "mode": "L"}
    return np.stack([shrunk(Image.fromarray(one)) for one in pixels]), [how] * len(pixels)


def recode(image: np.ndarray, how: dict) -> np.ndarray:
    """A picture (3, 32, 32) uint8 put through a file of another set's kind and size."""
    picture = Image.fromarray(image.transpose(1, 2, 0)).convert(how["mode"])
    picture = picture.resize(how["size"], Image.Resampling.BICUBIC)
    if "qtables" in how:
        file = io.BytesIO()
        picture.save(file, "JPEG", qtables=how["qtables"], subsampling=how["subsampling"])
        picture = Image.open(file)
    return shrunk(picture)


def shared_meaning(tiny: str, coded: list[dict]) -> np.ndarray:
    """Which of Tiny-ImageNet's validation pictures are of a class of ``SHARED``."""
    lines = (Path(tiny) / "val_annotations.txt").read_text().splitlines()
    classes = dict(line.split("\t")[:2] for line in lines)
    wanted = {entry.split()[0] for entry in SHARED.split(";") if entry.strip()}
    if missing := wanted - set(classes.values()):
        raise SystemExit(f"{tiny} has no pictures of {sorted(missing)}: give Tiny-ImageNet's val")
    return np.array([classes[how["name"]] in wanted for how in coded])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="the folder of CIFAR-100's pictures")
    parser.add_argument("--model", default="resnet20", help="the kept students' network")
    parser.add_argument("--pictures", type=int, help="of every set; all by default")
    parser.add_argument("--keep-examples", action="store_true", help="for notebook 13")
    for option in SOURCES.values():
        parser.add_argument(f"--{option}", required=True, help="a folder; see the top of the file")
    given = vars(parser.parse_args())
    students, most = networks.students(given["model"]), given["pictures"]
    data = load_dataset("cifar100", root=given["root"], validation="listed")
    test, validation = (some(part, most) for part in (data.test, data.validation))

    sets, alike = {}, {}
    for name, option in SOURCES.items():
        folder = given[option.replace("-", "_")]
        images, coded = (read_fashion if name == "Fashion-MNIST" else read_folder)(folder, most)
        sets[name] = replace(test, images=torch.from_numpy(images), labels=unlabelled(images))
        same = [recode(x, coded[i % len(coded)]) for i, x in enumerate(test.images.numpy())]
        alike[name] = replace(test, images=torch.from_numpy(np.stack(same)))
        if name == "Tiny-ImageNet":
            apart = ~shared_meaning(folder, coded)
        print(f"{name}: {len(images)} pictures", flush=True)

    counts = {"CIFAR-100": len(test)} | {name: len(part) for name, part in sets.items()}
    counts["Tiny-ImageNet, other meaning"] = int(apart.sum())
    rows, chosen = [], {}
    first = min(seed for _, seed in students)
    everyone = dict(sorted(students.items(), key=lambda item: item[0][1]))
    everyone |= {("teacher", -1): networks.teacher()}
    for (arm, seed), network in everyone.items():
        known = predict(network, test)
        fitted = fit_temperature(predict(network, validation), validation.labels)
        logits = {name: predict(network, part) for name, part in sets.items()}
        if seed == first:
            chosen[arm] = {"known": known} | logits
        logits["Tiny-ImageNet, other meaning"] = logits["Tiny-ImageNet"][apart]
        recoded = {name: predict(network, part) for name, part in alike.items()}
        control = {f"CIFAR-100 as {name}": z for name, z in recoded.items()}
        found = outliers.measure(known, logits | control, fitted, recoded=recoded)
        before = evaluate(known, test.labels)
        model = "resnet32" if arm == "teacher" else given["model"]
        about = {"model": model, "arm": arm, "seed": seed, "temperature": fitted}
        about |= {"accuracy": before["accuracy"], "entropy": before["entropy"]}
        rows.append(found.assign(**about)[[*about, *found.columns]])
        print(f"{arm} {seed}: accuracy {before['accuracy']:.4f}, T {fitted:.3f}", flush=True)
        write(given, rows, counts)
    if given["keep_examples"]:
        keep_logits(chosen)
        keep_fashion(given["fashion_mnist"])


def some(part: Split, wanted: int | None) -> Split:
    """A part's ``spaced`` pictures."""
    chosen = torch.from_numpy(spaced(len(part), wanted))
    return replace(part, images=part.images[chosen], labels=part.labels[chosen])


def unlabelled(images: np.ndarray) -> torch.Tensor:
    """What a ``Split`` of pictures without a class has in the place of labels."""
    return torch.zeros(len(images), dtype=torch.int64)


def write(given: dict, rows: list[pd.DataFrame], counts: dict[str, int]) -> None:
    """Replace the rows of a model and of the teacher in the kept table, and its note."""
    model, most = given["model"], given["pictures"]
    path = find_root() / "data" / "results" / outliers.TABLE
    older, notes = [], {}
    if path.exists():
        table = read_table(path)
        older = [table[~table["model"].isin([model, "resnet32"])]]
        notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    text = pd.concat([*older, *rows]).to_csv(index=False, float_format="%.5g")
    atomic_write(path, text)
    packages = ("torch", "numpy", "scikit-learn", "pillow")
    notes[model] = {
        "command": f"python benchmarks/outliers.py --model {model} --root DIR --tiny-imagenet DIR "
        "--textures DIR --signs DIR --fashion-mnist DIR" + (f" --pictures {most}" if most else ""),
        "date": str(datetime.date.today()),
        "hardware": machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "pictures": counts,
    }
    atomic_write(path.with_suffix(".json"), json.dumps(notes, indent=1) + "\n")
    print(f"{path}: {len(text) // 1024} KiB", flush=True)


def keep_logits(chosen: dict[str, dict[str, np.ndarray]]) -> None:
    """Write (arms, sets, pictures, classes) in float16, the pictures evenly spaced in each set."""
    arms = list(chosen)
    names = list(chosen[arms[0]])
    logits = np.stack(
        [[z[spaced(len(z), KEPT_PICTURES)] for z in chosen[arm].values()] for arm in arms]
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=logits.astype(np.float16), arms=arms, sets=names)
    path = find_root() / "data" / "results" / outliers.LOGITS
    atomic_write(path, buffer.getvalue())
    print(f"{path}: {len(buffer.getvalue()) // 1024} KiB")


def keep_fashion(folder: str) -> None:
    """Write 500 pictures (500, 8, 8) uint8 from 0 to 16."""
    small = [
        np.asarray(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BOX))
        for pixels in fashion_pixels(folder, 500)
    ]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.round(np.stack(small) / 255 * 16).astype(np.uint8))
    path = find_root() / "data" / "results" / outliers.FASHION
    atomic_write(path, buffer.getvalue())
    print(f"{path}: {len(buffer.getvalue()) // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
