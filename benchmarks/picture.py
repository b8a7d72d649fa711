"""Make the README's picture from the digits study: python benchmarks/picture.py

Trains the eight seeds of notebook 5 (about a minute), or loads them where the notebook has run.
"""

import numpy as np
import pandas as pd
from scipy import special

from ttm_lab import analysis
from ttm_lab.course import digits, figures
from ttm_lab.files import atomic_write, find_root, runs_folder

METHODS = ("CE", "KD", "TTM", "WTTM")


def main() -> None:
    figures.use_style()
    folder = runs_folder("digits")
    trained = [digits.train_students(seed, ["published"], folder) for seed in range(8)]
    histories = pd.concat(
        student.history.assign(method=student.name, seed=student.seed)
        for _, _, students in trained
        for student in students["published"]
    )
    figure, (left, right) = figures.plt.subplots(1, 2, figsize=(9.2, 3.4), width_ratios=(1.25, 1))
    figures.learning_curves(histories, "validation_entropy", ylabel="mean H(q), nats", ax=left)
    left.set_title("How undecided the student is, on validation digits")
    for k, method in enumerate(METHODS):
        logits = np.concatenate(
            [
                analysis.predict(students["published"][k].model, data.test.images)
                for _, data, students in trained
            ]
        )
        log_q = special.log_softmax(logits.astype(float), axis=1)
        entropy = np.sort(-(np.exp(log_q) * log_q).sum(axis=1))
        share = np.arange(1, len(entropy) + 1) / len(entropy) * 100
        style = figures.method_style(method)
        right.plot(entropy, share, markevery=len(entropy) // 7, label=method, **style)
    right.set(xlabel="H(q) of a test digit, nats", ylabel="% of digits at or below")
    right.set_title("After training, digit by digit")
    right.legend()
    target = find_root() / "data" / "results" / "student_entropy.png"
    atomic_write(target, figures.to_png(figure, scale=1.6))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
