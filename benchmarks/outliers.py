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

Replaces the rows of ``--model`` and of the teacher in ``data/results/cifar100_outliers.csv``: a row
a network, scale, set and score. ``--keep-logits`` writes ``cifar100_outlier_logits.npz``, too: the
first seed's logits of 200 pictures of every set, for the explorer of notebook 13.
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
# Classes of Tiny-ImageNet that CIFAR-100 has, too, or whose pictures show one of its classes: our
# reading of the 200 names, generous, since a doubtful class is no clean unknown.
SHARED = """
n01443537 goldfish; n01629819 salamander; n01698640 alligator; n01742172 boa; n01770393 scorpion
n01774384 black widow; n01774750 tarantula; n01882714 koala; n01910747 jellyfish; n01944390 snail
n01945685 slug; n01983481 lobster; n01984695 spiny lobster; n02123045 tabby; n02125311 cougar
n02129165 lion; n02132136 brown bear; n02165456 ladybug; n02190166 fly; n02206856 bee
n02233338 cockroach; n02279972 monarch; n02281406 sulphur butterfly; n02364673 guinea pig
n02403003 ox; n02410509 bison; n02437312 camel; n02480495 orangutan; n02481823 chimpanzee
n02486410 baboon; n02504458 elephant; n02509815 lesser panda; n02769748 backpack
n02795169 barrel; n02814533 beach wagon; n02814860 lighthouse; n02823428 beer bottle
n02909870 bucket; n02917067 bullet train; n03085013 computer keyboard; n03179701 desk
n03201208 dining table; n03393912 freight car; n03584254 iPod; n03637318 lampshade
n03649909 lawn mower; n03770439 miniskirt; n03796401 moving van; n03902125 pay-phone
n03937543 pill bottle; n03977966 police van; n03983396 pop bottle; n04008634 missile
n04099969 rocking chair; n04146614 school bus; n04285008 sports car; n04311004 steel arch bridge
n04328186 stopwatch; n04366367 suspension bridge; n04465501 tractor; n04487081 trolleybus
n04501370 turnstile; n04532670 viaduct; n04562935 water tower; n07579787 plate
n07720875 bell pepper; n07734744 mushroom; n07747607 orange; n09193705 alp; n09246464 cliff
n09332890 lakeside; n09428293 seashore; n12267677 acorn; n03100240 convertible
n03670208 limousine; n02950826 cannon; n03447447 gondola; n03042490 cliff dwelling
""".replace("\n", ";")


def shrunk(picture: Image.Image) -> np.ndarray:
    """A picture as (3, 32, 32) uint8."""
    picture = picture.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1)


def read_folder(folder: str) -> tuple[np.ndarray, list[dict]]:
    """All pictures below a folder (N, 3, 32, 32) uint8, and how each of their files is coded."""
    kinds = {".jpg", ".jpeg", ".png", ".ppm"}
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in kinds)
    if not paths:
        raise SystemExit(f"{folder} holds no pictures: give the folder that they lie in")
    pictures, coded = [], []
    for path in paths:
        with Image.open(path) as picture:
            how = {"name": path.name, "size": picture.size, "mode": "RGB"}
            if picture.format == "JPEG":
                sampling = JpegImagePlugin.get_sampling(picture)
                how |= {"qtables": picture.quantization, "subsampling": max(sampling, 0)}
                how["mode"] = picture.mode
            pictures.append(shrunk(picture))
            coded.append(how)
    return np.stack(pictures), coded


def read_fashion(folder: str) -> tuple[np.ndarray, list[dict]]:
    """Fashion-MNIST's test part from its idx file, also gzipped, and how its pictures are coded."""
    paths = sorted(Path(folder).rglob("t10k-images-idx3-ubyte*"))
    if not paths:
        raise SystemExit(f"{folder} holds no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz")
    data = paths[-1].read_bytes()
    data = gzip.decompress(data) if paths[-1].suffix == ".gz" else data
    pixels = np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)
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
    parser.add_argument("--keep-logits", action="store_true")
    sources = {"Tiny-ImageNet": "tiny-imagenet", "textures": "textures", "traffic signs": "signs"}
    sources["Fashion-MNIST"] = "fashion-mnist"
    for option in sources.values():
        parser.add_argument(f"--{option}", required=True, help="a folder; see the top of the file")
    given = vars(parser.parse_args())
    students = networks.students(given["model"])
    data = load_dataset("cifar100", root=given["root"], validation="listed")

    def split(images: np.ndarray) -> Split:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return replace(data.test, images=torch.from_numpy(images), labels=labels)

    sets, alike = {}, {}
    for name, option in sources.items():
        folder = given[option.replace("-", "_")]
        images, coded = (read_fashion if name == "Fashion-MNIST" else read_folder)(folder)
        sets[name] = split(images)
        same = [recode(x, coded[i % len(coded)]) for i, x in enumerate(data.test.images.numpy())]
        alike[name] = split(np.stack(same))
        if name == "Tiny-ImageNet":
            apart = ~shared_meaning(folder, coded)
            sets[f"{name}, other meaning"] = split(images[apart])
        print(f"{name}: {len(images)} pictures", flush=True)

    rows, chosen = [], {}
    first = min(seed for _, seed in students)
    everyone = {("teacher", -1): networks.teacher(), **students}
    for (arm, seed), network in everyone.items():
        known = predict(network, data.test)
        fitted = fit_temperature(predict(network, data.validation), data.validation.labels)
        logits = {name: predict(network, part) for name, part in sets.items()}
        recoded = {name: predict(network, part) for name, part in alike.items()}
        control = {f"CIFAR-100 as {name}": z for name, z in recoded.items()}
        found = outliers.measure(known, logits | control, fitted, recoded=recoded)
        before = evaluate(known, data.test.labels)
        model = "resnet32" if arm == "teacher" else given["model"]
        about = {"model": model, "arm": arm, "seed": seed, "temperature": fitted}
        about |= {"accuracy": before["accuracy"], "entropy": before["entropy"]}
        rows.append(found.assign(**about)[[*about, *found.columns]])
        if seed == first:
            chosen[arm] = {"known": known} | {name: logits[name] for name in sources}
        print(f"{arm} {seed}: accuracy {before['accuracy']:.4f}, T {fitted:.3f}", flush=True)
    write(given["model"], rows, {name: len(part) for name, part in sets.items()})
    if given["keep_logits"]:
        keep_logits(chosen)


def write(model: str, rows: list, counts: dict[str, int]) -> None:
    """Replace the rows of a model and of the teacher in the kept table, and its note."""
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
        "--textures DIR --signs DIR --fashion-mnist DIR",
        "date": str(datetime.date.today()),
        "hardware": machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "pictures": counts,
    }
    atomic_write(path.with_suffix(".json"), json.dumps(notes, indent=1) + "\n")
    print(f"{path}: {len(text) // 1024} KiB")


def keep_logits(chosen: dict[str, dict[str, np.ndarray]]) -> None:
    """Write (arms, sets, pictures, classes) in float16, the pictures evenly spaced in each set."""
    arms = [arm for arm in chosen if arm != "teacher"]
    names = list(chosen[arms[0]])
    logits = np.stack(
        [
            [z[np.linspace(0, len(z) - 1, KEPT_PICTURES).astype(int)] for z in chosen[arm].values()]
            for arm in arms
        ]
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=logits.astype(np.float16), arms=arms, sets=names)
    path = find_root() / "data" / "results" / outliers.LOGITS
    atomic_write(path, buffer.getvalue())
    print(f"{path}: {len(buffer.getvalue()) // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main())
