"""Answers to the exercises, by notebook and number: right in different ways, and wrong ones.

Each is Python source that replaces a stub; np, math, torch, scipy and the notebook's names are
there. Right are other routes, types and precisions, wrong what somebody might well believe.
"""

RIGHT = {}
WRONG = {}

# Notebook 1 ---------------------------------------------------------------------------------------

RIGHT["01", 1] = {
    "log-space": "temper = lambda p, T: torch.softmax(torch.log(p) / T, -1)",
    "numpy": """
def temper(p, T):
    q = np.power(np.asarray(p), 1 / T)
    return q / q.sum(axis=-1, keepdims=True)
""",
    "float32": """
def temper(p, T):
    q = p.float() ** (1 / T)
    return q / q.sum(-1, keepdim=True)
""",
    "loops": """
def temper(p, T):
    if p.ndim > 1:
        return torch.stack([temper(row, T) for row in p])
    powers = [float(x) ** (1 / T) for x in p]
    return torch.tensor([x / sum(powers) for x in powers])
""",
}
WRONG["01", 1] = {
    "T for 1/T": "temper = lambda p, T: p**T / (p**T).sum(-1, keepdim=True)",
    "softmax of probabilities": "temper = lambda p, T: torch.softmax(p / T, -1)",
    "not normalised": "temper = lambda p, T: p ** (1 / T)",
    "divided, not raised": "temper = lambda p, T: p / T / (p / T).sum(-1, keepdim=True)",
    "sum over pictures": "temper = lambda p, T: p ** (1 / T) / (p ** (1 / T)).sum(0)",
    "sum over all": "temper = lambda p, T: p ** (1 / T) / (p ** (1 / T)).sum()",
    "sum over dimension 1": "temper = lambda p, T: p**(1/T) / (p**(1/T)).sum(1, keepdim=True)",
    "guarded logarithm": "temper = lambda p, T: torch.softmax(torch.log(p + 1e-6) / T, -1)",
    "nothing returned": "def temper(p, T): p ** (1 / T)",
}

BISECTION = """
def temperature_for_entropy(p, target):
    p, low, high = np.asarray(p), 1.0, 1e6
    while high - low > 1e-6 * low:
        middle = {middle}
        q = p ** (1 / middle)
        q = q / q.sum()
        if -(q * {log}(q)).sum() < {target}:
            {smoother}
        else:
            {sharper}
    return {result}
"""
HALVING = {
    "middle": "(low + high) / 2",
    "log": "np.log",
    "target": "float(target)",
    "smoother": "low = middle",
    "sharper": "high = middle",
    "result": "middle",
}
RIGHT["01", 2] = {
    "bisection to 1e-6": BISECTION.format(**HALVING),
    "a tensor": BISECTION.format(**HALVING | {"result": "torch.tensor(middle)"}),
    "float32 tensor of one": BISECTION.format(
        **HALVING | {"result": "torch.tensor([middle], dtype=torch.float32)"}
    ),
    "brentq": """
def temperature_for_entropy(p, target):
    def excess(T):
        return float(shannon_entropy(power_transform(p, 1 / T)) - target)
    return scipy.optimize.brentq(excess, 1, 1e6)
""",
    "log-space, tensors throughout": """
def temperature_for_entropy(p, target):
    low, high = torch.tensor(0.0), torch.tensor(math.log(1e6))
    for _ in range(40):
        middle = (low + high) / 2
        q = torch.softmax(torch.log(p) / middle.exp(), -1)
        too_sharp = torch.special.entr(q).sum() < target
        low, high = (middle, high) if too_sharp else (low, middle)
    return middle.exp()
""",
}
WRONG["01", 2] = {
    "double temperature": "temperature_for_entropy = lambda p, target: 2.0",
    "no search": "temperature_for_entropy = lambda p, target: target / shannon_entropy(p)",
    "exponent returned": BISECTION.format(**HALVING | {"result": "1 / middle"}),
    "halves the wrong way": BISECTION.format(
        **HALVING | {"smoother": "high = middle", "sharper": "low = middle"}
    ),
    "bits": BISECTION.format(**HALVING | {"log": "np.log2"}),
    "doubles, whatever the target": BISECTION.format(
        **HALVING | {"target": "2 * float(shannon_entropy(torch.as_tensor(p)))"}
    ),
    "a probability for a temperature": "temperature_for_entropy = lambda p, target: p.max()",
    "an exponent below zero": "temperature_for_entropy = lambda p, target: -3.0",
}

RIGHT["01", 3] = {
    "numpy, the far pair": """
def recover_temperature(p, p_T):
    p, p_T = np.asarray(p), np.asarray(p_T)
    return np.log(p[0] / p[-1]) / np.log(p_T[0] / p_T[-1])
""",
    "line through all, float32": """
def recover_temperature(p, p_T):
    slope, _ = np.polyfit(np.log(p_T.float().numpy()), np.log(p.float().numpy()), 1)
    return slope
""",
    "root search": """
def recover_temperature(p, p_T):
    def gap(T):
        return float((p ** (1 / T) / (p ** (1 / T)).sum())[0] - p_T[0])
    return scipy.optimize.brentq(gap, 0.01, 100)
""",
    "mean over pairs, loops": """
def recover_temperature(p, p_T):
    pairs = [(i, j) for i in range(len(p)) for j in range(i)]
    found = [math.log(p[i] / p[j]) / math.log(p_T[i] / p_T[j]) for i, j in pairs]
    return sum(found) / len(found)
""",
}
WRONG["01", 3] = {
    "turned round": """
def recover_temperature(p, p_T):
    return torch.log(p_T[0] / p_T[1]) / torch.log(p[0] / p[1])
""",
    "normaliser forgotten": "recover_temperature = lambda p, q: torch.log(p[0]) / torch.log(q[0])",
    "odds for log-odds": "recover_temperature = lambda p, q: (p[0] / p[1]) / (q[0] / q[1])",
    "entropies": "recover_temperature = lambda p, q: shannon_entropy(q) / shannon_entropy(p)",
    "differences": "recover_temperature = lambda p, q: (p[0] - p[1]) / (q[0] - q[1])",
}

DISTRIBUTION = "\nmy_distribution = lambda: [0.6, 0.2, 0.2]"
RIGHT["01", 4] = {
    "squares, tensors": """
def my_map(x):
    x = torch.as_tensor(x)
    return x + x**2 * (1 - x)
my_distribution = lambda: torch.tensor([0.5, 0.25, 0.25])
""",
    "sine": """
my_map = lambda x: x + 0.1 * np.sin(np.pi * x) ** 2
my_distribution = lambda: (0.4, 0.2, 0.2, 0.2)
""",
    "boost lost to rounding near 0": """
my_map = lambda x: x + x**12 * (1 - x)
my_distribution = lambda: np.array([0.9, 0.1])
""",
    "boost lost to rounding near 1": """
my_map = lambda x: x + x**2 * (1 - x) ** 8
my_distribution = lambda: [0.1] + 18 * [0.05]
""",
    "loops, in place": """
def my_map(x):
    for i in range(len(x)):
        x[i] += x[i] ** 3 * (1 - x[i])
    return x
"""
    + DISTRIBUTION,
}
WRONG["01", 4] = {
    "identity below 0.1": """
def my_map(x):
    return np.where(x < 0.1, x, x + (x - 0.1) ** 2 * (1 - x))
"""
    + DISTRIBUTION,
    "identity below 0.05": """
def my_map(x):
    return x + np.maximum(x - 0.05, 0) ** 3 * (1 - x)
"""
    + DISTRIBUTION,
    "identity above 0.8": "my_map = lambda x: x + x**2 * np.maximum(0.8 - x, 0)" + DISTRIBUTION,
    "identity": "my_map = lambda x: x" + DISTRIBUTION,
    "square root": "my_map = np.sqrt" + DISTRIBUTION,
    "square": "my_map = np.square" + DISTRIBUTION,
    "the kinked line": "my_map = kinked\nmy_distribution = lambda: [0.7, 0.3]",
    "falls": "my_map = lambda x: x + 4 * x**2 * (1 - x)" + DISTRIBUTION,
    "misses 1": "my_map = lambda x: 1.1 * x + x**3 * (1 - x)" + DISTRIBUTION,
    "a uniform distribution": """
my_map = lambda x: x + x**4 * (1 - x)
my_distribution = lambda: np.ones(7) / 7
""",
    "sums to more": """
my_map = lambda x: x + x**4 * (1 - x)
my_distribution = lambda: [0.75, 0.35]
""",
    "not a number": "my_map = lambda x: x * np.nan" + DISTRIBUTION,
}

# Notebook 2 ---------------------------------------------------------------------------------------

RIGHT["02", 1] = {
    "numpy": """
def kd_gradient(student_logits, teacher_logits, T):
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    z, v = np.asarray(student_logits), np.asarray(teacher_logits)
    return T * (softmax(z / T) - softmax(v / T))
""",
    "log-space": """
def kd_gradient(student_logits, teacher_logits, T):
    log_q, log_p = (x / T - (x / T).logsumexp(-1, True) for x in (student_logits, teacher_logits))
    return T**2 * (log_q.exp() - log_p.exp()) / T
""",
    "float32": """
def kd_gradient(student_logits, teacher_logits, T):
    z, v = student_logits.float() / T, teacher_logits.float() / T
    return torch.tensor(T) * (z.softmax(-1) - v.softmax(-1))
""",
    "loops": """
def kd_gradient(student_logits, teacher_logits, T):
    if student_logits.ndim > 1:
        pairs = zip(student_logits, teacher_logits)
        return torch.stack([kd_gradient(z, v, T) for z, v in pairs])
    a, b = ([math.exp(x / T) for x in logits] for logits in (student_logits, teacher_logits))
    return torch.tensor([T * (x / sum(a) - y / sum(b)) for x, y in zip(a, b)])
""",
}
WRONG["02", 1] = {
    name: f"""
def kd_gradient(z, v, T):
    q, p = torch.softmax(z{student}, {axis}), torch.softmax(v{teacher}, {axis})
    return {result}
"""
    for name, student, teacher, axis, result in (
        ("factor forgotten", " / T", " / T", -1, "q - p"),
        ("T squared", " / T", " / T", -1, "T**2 * (q - p)"),
        ("T below", " / T", " / T", -1, "(q - p) / T"),
        ("turned round", " / T", " / T", -1, "T * (p - q)"),
        ("T for 1/T", " * T", " * T", -1, "T * (q - p)"),
        ("student not softened", "", " / T", -1, "T * (q - p)"),
        ("nothing softened", "", "", -1, "T * (q - p)"),
        ("classes along dimension 0", " / T", " / T", 0, "T * (q - p)"),
        ("classes along dimension 1", " / T", " / T", 1, "T * (q - p)"),
        ("mean over pictures", " / T", " / T", -1, "T * (q - p) / len(z)"),
        ("one row", " / T", " / T", -1, "T * (q - p).sum(0)"),
        ("KL reversed", " / T", " / T", -1, "T * q * (q / p).log()"),
    )
}

SHOWS = """
def shows_first(logits, fraction=0.5):
    top = logits.topk(2).values
    p = torch.softmax(logits, -1).topk(2).values
    gap = top[:, 0] - top[:, 1]
    index = {index}
    return index, {T}
"""
FORMULA = "-gap[index] / math.log(fraction)"
RIGHT["02", 2] = {
    "float32 and numpy": """
def shows_first(logits, fraction=0.5):
    top = np.sort(np.asarray(logits, dtype=np.float32), axis=1)
    gap = top[:, -1] - top[:, -2]
    return int(gap.argmin()), gap.min() / np.log(1 / fraction)
""",
    "probabilities": """
def shows_first(logits, fraction=0.5):
    top = temperature_softmax(logits, 1.0).topk(2).values
    odds = top[:, 1] / top[:, 0]
    index = odds.argmax()
    return index, torch.log(odds[index]) / torch.log(torch.tensor(fraction))
""",
    "loops": """
def shows_first(logits, fraction=0.5):
    best = None
    for i, row in enumerate(logits.tolist()):
        first, second = sorted(row)[-1:-3:-1]
        T = (first - second) / -math.log(fraction)
        if best is None or T < best[1]:
            best = i, T
    return best
""",
    "brentq": SHOWS.format(
        index="(p[:, 1] / p[:, 0]).argmax()",
        T="scipy.optimize.brentq(lambda T: math.exp(-gap[index] / T) - fraction, 1e-3, 1e4)",
    ),
    "bisection to 1e-6": """
def shows_first(logits, fraction=0.5):
    low, high = 1e-3, 1e4
    while high - low > 1e-6:
        T = (low + high) / 2
        top = temperature_softmax(logits, T).topk(2).values
        ratio = top[:, 1] / top[:, 0]
        low, high = (low, T) if ratio.max() > fraction else (T, high)
    return ratio.argmax(), T
""",
}
WRONG["02", 2] = {
    name: SHOWS.format(index=index, T=T)
    for name, index, T in (
        ("largest second probability", "p[:, 1].argmax()", FORMULA),
        ("least sure", "p[:, 0].argmin()", FORMULA),
        ("smallest difference of probabilities", "(p[:, 0] - p[:, 1]).argmin()", FORMULA),
        ("most entropy", "shannon_entropy(temperature_softmax(logits, 1.0)).argmax()", FORMULA),
        ("largest gap", "gap.argmax()", FORMULA),
        ("fraction ignored", "gap.argmin()", "gap[index] / math.log(2)"),
        ("other logarithm", "gap.argmin()", "-gap[index] / math.log2(fraction)"),
        ("sign lost", "gap.argmin()", "gap[index] / math.log(fraction)"),
        ("gap only", "gap.argmin()", "gap[index]"),
        ("upside down", "gap.argmin()", "-math.log(fraction) / gap[index]"),
        ("fraction of the sum", "gap.argmin()", "gap[index] / math.log(1 / fraction + 1)"),
    )
}

RIGHT["02", 3] = {
    "base 2": "log_slope = lambda f, T: math.log2(f(2 * T) / f(T))",
    "base 10": "log_slope = lambda f, T: (np.log10(f(2*T)) - np.log10(f(T))) / np.log10(2)",
    "float32 tensors": """
def log_slope(f, T):
    T = torch.tensor(T)
    return torch.log(torch.as_tensor(f(2 * T) / f(T), dtype=torch.float32)) / math.log(2)
""",
    "a line through two points": """
def log_slope(f, T):
    return np.polyfit(np.log([T, 2 * T]), np.log([f(T), f(2 * T)]), 1)[0]
""",
}
WRONG["02", 3] = {
    "run forgotten": "log_slope = lambda f, T: np.log(f(2 * T)) - np.log(f(T))",
    "bases mixed": "log_slope = lambda f, T: np.log10(f(2 * T) / f(T)) / np.log(2)",
    "no logarithms": "log_slope = lambda f, T: (f(2 * T) - f(T)) / T",
    "half logarithmic": "log_slope = lambda f, T: (np.log(f(2 * T)) - np.log(f(T))) / T",
    "turned round": "log_slope = lambda f, T: np.log2(f(T) / f(2 * T))",
    "slope at T": "log_slope = lambda f, T: np.log(f(1.001 * T) / f(T)) / np.log(1.001)",
    "between T / 2 and T": "log_slope = lambda f, T: np.log2(f(T) / f(T / 2))",
}

RIGHT["02", 4] = {
    "numpy": """
def optimum_with_label(p, label, weight):
    return weight * np.asarray(p) + (1 - weight) * np.eye(len(p))[label]
""",
    "a list": """
def optimum_with_label(p, label, weight):
    return [weight * float(x) + (1 - weight) * (i == label) for i, x in enumerate(p)]
""",
    "in place, float32": """
def optimum_with_label(p, label, weight):
    q = weight * p.float()
    q[label] += 1 - weight
    return q
""",
    "one_hot": """
def optimum_with_label(p, label, weight):
    return torch.lerp(torch.nn.functional.one_hot(torch.tensor(label), len(p)).to(p), p, weight)
""",
}
WRONG["02", 4] = {
    name: f"""
def optimum_with_label(p, label, weight):
    y = torch.eye(len(p)).to(p)[label]
    return {result}
"""
    for name, result in (
        ("weights swapped", "weight * y + (1 - weight) * p"),
        ("the teacher", "p"),
        ("the label", "y"),
        ("not normalised", "y + weight * p"),
        ("geometric", "p**weight / (p**weight).sum()"),
        ("softmax of the mixture", "((1 - weight) * y + weight * p).softmax(-1)"),
        ("first class", "(1 - weight) * torch.eye(len(p)).to(p)[0] + weight * p"),
        ("a column", "((1 - weight) * y + weight * p)[:, None]"),
    )
}

# Notebook 3 ---------------------------------------------------------------------------------------

ORDER = """
def find_order(student_logits, teacher_logits, temperature):
    parts = decompose_ttm(student_logits, teacher_logits, temperature)
    q = {student}.softmax(-1)
    wanted = (parts.kd + parts.teacher_entropy - parts.total) / {divisor}
    low, high = 0.01, 0.999
    while high - low > {width}:
        middle = (low + high) / 2
        if renyi_entropy(q, middle) {compare} wanted:
            low = middle
        else:
            high = middle
    return middle
"""
SEARCH = {
    "student": "student_logits",
    "divisor": "(temperature - 1)",
    "width": "1e-6",
    "compare": ">",
}
RIGHT["03", 1] = {
    "bisection to 1e-6": ORDER.format(**SEARCH),
    "float32": """
def find_order(student_logits, teacher_logits, temperature):
    z, v = student_logits.float(), teacher_logits.float()
    parts = decompose_ttm(z, v, temperature)
    def gap(order):
        renyi = renyi_entropy(z.softmax(-1), order)
        return float(parts.kd + parts.teacher_entropy - (temperature - 1) * renyi - parts.total)
    return scipy.optimize.brentq(gap, 0.01, 0.999)
""",
    "numpy, from the renyi term": """
def find_order(student_logits, teacher_logits, temperature):
    wanted = -decompose_ttm(student_logits, teacher_logits, temperature).renyi.item()
    q = np.exp(student_logits.numpy())
    q = q / q.sum()
    def gap(order):
        return (temperature - 1) * np.log((q**order).sum()) / (1 - order) - wanted
    return torch.tensor(scipy.optimize.bisect(gap, 0.01, 0.999, xtol=1e-6))
""",
    "by the theorem": "find_order = lambda z, v, temperature: 1 / temperature",
}
WRONG["03", 1] = {
    "the temperature": "find_order = lambda z, v, temperature: temperature",
    "Shannon": "find_order = lambda z, v, temperature: 1.0",
    "one minus": "find_order = lambda z, v, temperature: 1 - 1 / temperature",
    "the teacher's entropy": ORDER.format(**SEARCH | {"student": "teacher_logits"}),
    "softened student": ORDER.format(**SEARCH | {"student": "(student_logits / temperature)"}),
    "T for T - 1": ORDER.format(**SEARCH | {"divisor": "temperature"}),
    "halves the wrong way": ORDER.format(**SEARCH | {"compare": "<"}),
    "stops too early": ORDER.format(**SEARCH | {"width": "0.01"}),
}

RIGHT["03", 2] = {
    "numpy": """
def renyi_gradient(logits, order):
    z = np.asarray(logits)
    a, b = np.exp(order * z), np.exp(z)
    a, b = a / a.sum(-1, keepdims=True), b / b.sum(-1, keepdims=True)
    return order * (a - b) / (1 - order)
""",
    "powers of q, float32": """
def renyi_gradient(logits, order):
    q = logits.float().softmax(-1)
    return order / (1 - order) * (q**order / (q**order).sum(-1, keepdim=True) - q)
""",
    "loops": """
def renyi_gradient(logits, order):
    rows = []
    for row in logits.tolist():
        a, b = [math.exp(order * x) for x in row], [math.exp(x) for x in row]
        rows.append([order / (1 - order) * (x / sum(a) - y / sum(b)) for x, y in zip(a, b)])
    return rows
""",
    "differences": """
def renyi_gradient(logits, order):
    h, (rows, classes) = 1e-5, logits.shape
    columns = [
        (renyi_entropy((logits + h * e).softmax(-1), order)
         - renyi_entropy((logits - h * e).softmax(-1), order)) / (2 * h)
        for e in torch.eye(classes)
    ]
    return torch.stack(columns, -1)
""",
}
WRONG["03", 2] = {
    name: f"""
def renyi_gradient(logits, order):
    q, q_order = logits.softmax({axis}), ({softened}).softmax({axis})
    return {result}
"""
    for name, axis, softened, result in (
        ("turned round", -1, "order * logits", "order / (1 - order) * (q - q_order)"),
        ("order T for 1/T", -1, "logits / order", "order / (1 - order) * (q_order - q)"),
        ("factor forgotten", -1, "order * logits", "q_order - q"),
        ("T - 1", -1, "order * logits", "(q_order - q) / (order - 1)"),
        ("order above forgotten", -1, "order * logits", "(q_order - q) / (1 - order)"),
        ("Shannon", -1, "logits", "-q * (q.log() - (q * q.log()).sum(-1, keepdim=True))"),
        ("over pictures", 0, "order * logits", "order / (1 - order) * (q_order - q)"),
        ("summed", -1, "order * logits", "(order / (1 - order) * (q_order - q)).sum(0)"),
    )
}

RIGHT["03", 3] = {
    "from the ratio, tensors": """
def kd_weight_and_scale(beta, temperature):
    r = torch.tensor(beta / temperature)
    return torch.stack([r / (1 + r), 1 + r])
""",
    "numpy, float32": """
def kd_weight_and_scale(beta, temperature):
    weight = np.float32(beta) / np.float32(beta + temperature)
    return [weight, 1 / (1 - weight)]
""",
    "bisection to 1e-6": """
def kd_weight_and_scale(beta, temperature):
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if middle / (1 - middle) * temperature < beta:
            low = middle
        else:
            high = middle
    return middle, 1 / (1 - middle)
""",
    "brentq": """
def kd_weight_and_scale(beta, temperature):
    weight = scipy.optimize.brentq(lambda w: w * temperature - beta * (1 - w), 0, 1)
    return weight, 1 / (1 - weight)
""",
}
WRONG["03", 3] = {
    name: f"""
def kd_weight_and_scale(beta, temperature):
    weight = {weight}
    return {result}
"""
    for name, weight, result in (
        ("T forgotten", "beta / (1 + beta)", "weight, 1 / (1 - weight)"),
        ("complement", "temperature / (beta + temperature)", "weight, 1 / (1 - weight)"),
        ("ratio", "beta / temperature", "weight, 1 + weight"),
        ("T squared", "beta / (beta + temperature**2)", "weight, 1 / (1 - weight)"),
        ("scale 1 + beta", "beta / (beta + temperature)", "weight, 1 + beta"),
        ("scale upside down", "beta / (beta + temperature)", "weight, 1 - weight"),
        ("order swapped", "beta / (beta + temperature)", "1 / (1 - weight), weight"),
    )
}

MIXED = """
def mixed_labels(labels, teacher_logits, temperature, beta):
    p_t = temperature_softmax(teacher_logits, {temperature})
    y = torch.nn.functional.one_hot(labels, p_t.shape[-1])
    return {result}
"""
RIGHT["03", 4] = {
    "numpy": """
def mixed_labels(labels, teacher_logits, temperature, beta):
    p = scipy.special.softmax(np.asarray(teacher_logits) / temperature, axis=-1)
    return (np.eye(p.shape[-1])[np.asarray(labels)] + beta * p) / (1 + beta)
""",
    "in place": """
def mixed_labels(labels, teacher_logits, temperature, beta):
    strength = beta / (1 + beta)
    mixed = strength * temperature_softmax(teacher_logits, temperature)
    mixed[torch.arange(len(labels)), labels] += 1 - strength
    return mixed
""",
    "float32": MIXED.format(
        temperature="temperature", result="((y + beta * p_t) / (1 + beta)).float()"
    ),
    "loops": """
def mixed_labels(labels, teacher_logits, temperature, beta):
    rows = []
    for label, v in zip(labels.tolist(), teacher_logits.tolist()):
        e = [math.exp((x - max(v)) / temperature) for x in v]
        rows.append([((i == label) + beta * x / sum(e)) / (1 + beta) for i, x in enumerate(e)])
    return torch.tensor(rows)
""",
}
WRONG["03", 4] = {
    name: MIXED.format(temperature=temperature, result=result)
    for name, temperature, result in (
        ("not normalised", "temperature", "y + beta * p_t"),
        ("roles swapped", "temperature", "(beta * y + p_t) / (1 + beta)"),
        ("T in beta", "temperature", "(y + beta / temperature * p_t) / (1 + beta / temperature)"),
        ("teacher not softened", "1.0", "(y + beta * p_t) / (1 + beta)"),
        ("the teacher alone", "temperature", "p_t"),
        ("the label alone", "temperature", "y.to(p_t)"),
        ("uniform for the teacher", "1e9", "(y + beta * p_t) / (1 + beta)"),
    )
}

# Notebook 4 ---------------------------------------------------------------------------------------

RIGHT["04", 1] = {
    "largest logit first": """
def stable_power_sum(logits, exponent):
    v = logits - logits.amax(-1, keepdim=True)
    return torch.exp((exponent * v).logsumexp(-1) - exponent * v.logsumexp(-1))
""",
    "log_softmax": """
def stable_power_sum(logits, exponent):
    return (exponent * logits.log_softmax(-1)).exp().sum(-1)
""",
    "float64": """
def stable_power_sum(logits, exponent):
    return (exponent * logits.double().log_softmax(-1)).logsumexp(-1).exp()
""",
    "numpy": """
def stable_power_sum(logits, exponent):
    v = np.asarray(logits)
    log_p = v - scipy.special.logsumexp(v, axis=-1, keepdims=True)
    return np.exp(exponent * log_p).sum(-1)
""",
    "loops": """
def stable_power_sum(logits, exponent):
    weights = []
    for v in logits.tolist():
        log_sum = max(v) + math.log(sum(math.exp(x - max(v)) for x in v))
        weights.append(sum(math.exp(exponent * (x - log_sum)) for x in v))
    return torch.tensor(weights)
""",
}
WRONG["04", 1] = {
    name: f"stable_power_sum = lambda v, exponent: {result}"
    for name, result in (
        ("softmax", "(v.softmax(-1) ** exponent).sum(-1)"),
        ("softmax in float64", "(v.double().softmax(-1) ** exponent).sum(-1)"),
        ("softmax, guarded", "((v.double().softmax(-1) + 1e-300) ** exponent).sum(-1)"),
        ("library on probabilities", "power_sum(v.double().softmax(-1), exponent)"),
        (
            "exponent of the sum forgotten",
            "(torch.logsumexp(exponent * v, -1) - torch.logsumexp(v, -1)).exp()",
        ),
        ("exp forgotten", "torch.logsumexp(exponent * v, -1) - exponent * torch.logsumexp(v, -1)"),
        ("1/gamma", "(v.log_softmax(-1) / exponent).logsumexp(-1).exp()"),
        ("of the softened", "(exponent * v).log_softmax(-1).logsumexp(-1).exp()"),
        ("over pictures", "(exponent * v.log_softmax(-1)).logsumexp(0).exp()"),
        ("exponentials", "((v.exp() / v.exp().sum(-1, keepdim=True)) ** exponent).sum(-1)"),
    )
}

TOP = """
def top_probability(weight, classes, exponent):
    low, high = {start}
    {loop}:
        middle = (low + high) / 2
        rest = {rest}
        U = {U}
        if U {compare} weight:
            low = middle
        else:
            high = middle
    return middle
"""
HALVE = {
    "start": "1 / classes, 1.0",
    "loop": "for _ in range(60)",
    "rest": "(1 - middle) / (classes - 1)",
    "U": "middle**exponent + (classes - 1) * rest**exponent",
    "compare": ">",
}
RIGHT["04", 2] = {
    "bisection to 1e-6": TOP.format(**HALVE | {"loop": "while high - low > 1e-6"}),
    "brentq": """
def top_probability(weight, classes, exponent):
    def excess(x):
        rest = (1 - x) / (classes - 1)
        return x**exponent + (classes - 1) * rest**exponent - weight
    return scipy.optimize.brentq(excess, 1 / classes, 1)
""",
    "float32": TOP.format(
        **HALVE | {"start": "torch.tensor(1 / classes), torch.tensor(1.0, dtype=torch.float32)"}
    ),
    "until the weight agrees": """
def top_probability(weight, classes, exponent):
    low, high, got = 1 / classes, 1.0, 0.0
    while abs(got - weight) > 1e-6:
        middle = torch.tensor([(low + high) / 2], dtype=torch.float64)
        got = float(power_sum(spread_evenly(middle, classes), exponent))
        low, high = (float(middle), high) if got > weight else (low, float(middle))
    return middle
""",
    "doubt in log-space": """
def top_probability(weight, classes, exponent):
    low, high = math.log(1e-12), math.log(1 - 1 / classes)
    for _ in range(60):
        doubt = math.exp((low + high) / 2)
        U = (1 - doubt) ** exponent + (classes - 1) ** (1 - exponent) * doubt**exponent
        low, high = (low, math.log(doubt)) if U > weight else (math.log(doubt), high)
    return 1 - doubt
""",
}
WRONG["04", 2] = {
    "halves the wrong way": TOP.format(**HALVE | {"compare": "<"}),
    "rest over K": TOP.format(**HALVE | {"rest": "(1 - middle) / classes"}),
    "rest not spread": TOP.format(**HALVE | {"U": "middle**exponent + (1 - middle) ** exponent"}),
    "K for K - 1": TOP.format(**HALVE | {"U": "middle**exponent + classes * rest**exponent"}),
    "1/gamma": TOP.format(
        **HALVE | {"U": "middle ** (1 / exponent) + (classes - 1) * rest ** (1 / exponent)"}
    ),
    "stops at 0.01": TOP.format(**HALVE | {"loop": "while high - low > 0.01"}),
    "no spread": "top_probability = lambda weight, classes, exponent: weight ** (-1 / exponent)",
    "a straight line": """
def top_probability(weight, classes, exponent):
    bound = classes ** (1 - exponent)
    return 1 - (weight - 1) / (bound - 1) * (1 - 1 / classes)
""",
    "doubt returned": TOP.format(**HALVE).replace("return middle", "return 1 - middle"),
}

WTTM = """
def repaired_wttm(student_logits, teacher_logits, temperature):
    p_T = temperature_softmax(teacher_logits, temperature)
    q = temperature_softmax(student_logits, {student})
    weight = ({weighted} ** ({power})).sum(-1)
    return ({divergence}{reduce}
"""
GOOD = {
    "student": 1,
    "weighted": "temperature_softmax(teacher_logits, 1)",
    "power": "1 / temperature",
    "divergence": "weight * kl_divergence(p_T, q))",
    "reduce": ".mean()",
}
RIGHT["04", 3] = {
    "sum over pictures": WTTM.format(**GOOD | {"reduce": ".sum() / len(weight)"}),
    "numpy": """
def repaired_wttm(student_logits, teacher_logits, temperature):
    z, v = np.asarray(student_logits), np.asarray(teacher_logits)
    log_q = scipy.special.log_softmax(z, -1)
    p, p_T = scipy.special.softmax(v, -1), scipy.special.softmax(v / temperature, -1)
    return np.mean((p ** (1 / temperature)).sum(-1) * (p_T * (np.log(p_T) - log_q)).sum(-1))
""",
    "log-space, float32": """
def repaired_wttm(student_logits, teacher_logits, temperature):
    z, v = student_logits.float(), teacher_logits.float()
    U = (v.log_softmax(-1) / temperature).logsumexp(-1).exp()
    log_p = (v / temperature).log_softmax(-1)
    return (U * (log_p.exp() * (log_p - z.log_softmax(-1))).sum(-1)).mean()
""",
    "loops": """
def repaired_wttm(student_logits, teacher_logits, temperature):
    total = 0.0
    for z, v in zip(student_logits, teacher_logits):
        p, p_T, q = v.softmax(-1), (v / temperature).softmax(-1), z.softmax(-1)
        U = sum(float(x) ** (1 / temperature) for x in p)
        total += U * sum(float(a) * math.log(a / b) for a, b in zip(p_T, q))
    return total / len(student_logits)
""",
}
WRONG["04", 3] = {
    "as it was": WTTM.format(
        student="temperature",
        weighted="p_T",
        power="1 / temperature",
        divergence="weight * kl_divergence(p_T, q))",
        reduce=".sum() / weight.sum()",
    ),
    **{
        name: WTTM.format(**GOOD | {key: value})
        for name, key, value in (
            ("student softened", "student", "temperature"),
            ("weight of the softened", "weighted", "p_T"),
            ("divided by the weights", "reduce", ".sum() / weight.sum()"),
            ("T for 1/T", "power", "temperature"),
            ("KL reversed", "divergence", "weight * kl_divergence(q, p_T))"),
            ("no weight", "divergence", "kl_divergence(p_T, q))"),
            ("T squared", "divergence", "temperature**2 * weight * kl_divergence(p_T, q))"),
            ("sum", "reduce", ".sum()"),
            ("one a picture", "reduce", ""),
        )
    },
}

STRENGTHS = """
def smoothing_strengths(probabilities, temperature, beta):
    pull = beta * ({base} ** ({power})).sum(-1)
    return {strength}


def matched_beta(probabilities, temperature, beta_ttm):
    return {matched}
"""
FINE = {
    "base": "probabilities",
    "power": "1 / temperature",
    "strength": "pull / (1 + pull)",
    "matched": "beta_ttm / (probabilities ** (1 / temperature)).sum(-1).mean()",
}
RIGHT["04", 4] = {
    "numpy": """
def smoothing_strengths(probabilities, temperature, beta):
    return 1 - 1 / (1 + beta * (np.asarray(probabilities) ** (1 / temperature)).sum(-1))


def matched_beta(probabilities, temperature, beta_ttm):
    return beta_ttm / np.mean((np.asarray(probabilities) ** (1 / temperature)).sum(axis=-1))
""",
    "log-space, Rényi": """
def smoothing_strengths(probabilities, temperature, beta):
    log_U = (probabilities.log() / temperature).logsumexp(-1)
    return torch.sigmoid(log_U + torch.log(torch.as_tensor(beta)))


def matched_beta(probabilities, temperature, beta_ttm):
    return float(beta_ttm * len(probabilities) / power_sum(probabilities, 1 / temperature).sum())
""",
    "float32": STRENGTHS.format(**FINE | {"base": "probabilities.float()"}),
    "loops": """
def smoothing_strengths(probabilities, temperature, beta):
    U = [sum(x ** (1 / temperature) for x in row) for row in probabilities.tolist()]
    return [beta * u / (1 + beta * u) for u in U]


def matched_beta(probabilities, temperature, beta_ttm):
    U = [sum(x ** (1 / temperature) for x in row) for row in probabilities.tolist()]
    return beta_ttm / (sum(U) / len(U))
""",
}
WRONG["04", 4] = {
    name: STRENGTHS.format(**FINE | {key: value})
    for name, key, value in (
        ("pull for strength", "strength", "pull"),
        ("strength of TTM", "strength", "beta / (1 + beta) * torch.ones(len(probabilities))"),
        ("weight for strength", "strength", "pull / beta / (1 + pull / beta)"),
        ("the label's share", "strength", "1 / (1 + pull)"),
        ("mean strength", "strength", "(pull / (1 + pull)).mean() * torch.ones(len(pull))"),
        ("a column", "strength", "(pull / (1 + pull))[:, None]"),
        ("T for 1/T", "power", "temperature"),
        (
            "times the mean",
            "matched",
            "beta_ttm * power_sum(probabilities, 1 / temperature).mean()",
        ),
        ("unchanged", "matched", "beta_ttm"),
        ("by the sum", "matched", "beta_ttm / power_sum(probabilities, 1 / temperature).sum()"),
        (
            "mean of quotients",
            "matched",
            "(beta_ttm / power_sum(probabilities, 1 / temperature)).mean()",
        ),
    )
}

# Notebook 5 ---------------------------------------------------------------------------------------

HALF_WIDTHS = """
from scipy import stats


def paired_half_width(first, second):
    d, n = first - second, len(first)
    return stats.t.ppf({level}, {dof}) * {paired}


def unpaired_half_width(first, second):
    n = len(first)
    return stats.t.ppf({level}, {dof2}) * {unpaired}
"""
SOUND = {
    "level": 0.975,
    "dof": "n - 1",
    "dof2": "2 * n - 2",
    "paired": "d.std(ddof=1) / n**0.5",
    "unpaired": "((first.var(ddof=1) + second.var(ddof=1)) / n) ** 0.5",
}
RIGHT["05", 1] = {
    "scipy's tests": """
def paired_half_width(first, second):
    low, high = stats.ttest_rel(first, second).confidence_interval()
    return (high - low) / 2


def unpaired_half_width(first, second):
    low, high = stats.ttest_ind(first, second).confidence_interval()
    return (high - low) / 2
""",
    "torch, float32": """
def paired_half_width(first, second):
    d = torch.tensor(first - second, dtype=torch.float32)
    return stats.t.ppf(0.975, len(d) - 1) * d.std() / len(d) ** 0.5


def unpaired_half_width(first, second):
    a, b = torch.tensor(first).float(), torch.tensor(second).float()
    return stats.t.ppf(0.975, 2 * len(a) - 2) * torch.sqrt((a.var() + b.var()) / len(a))
""",
    "loops": """
def spread(values):
    mean = sum(values) / len(values)
    return sum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values)


def paired_half_width(first, second):
    differences = [a - b for a, b in zip(first, second)]
    return stats.t.ppf(0.975, len(first) - 1) * math.sqrt(spread(differences))


def unpaired_half_width(first, second):
    return stats.t.ppf(0.975, 2 * len(first) - 2) * math.sqrt(spread(first) + spread(second))
""",
}
WRONG["05", 1] = {
    name: HALF_WIDTHS.format(**SOUND | changed)
    for name, changed in (
        ("normal quantile, paired", {"dof": "10**9"}),
        ("normal quantile, unpaired", {"dof2": "10**9"}),
        ("n degrees of freedom", {"dof": "n"}),
        ("one-sided", {"level": 0.95}),
        ("divided by n in the variance", {"paired": "d.std() / n**0.5"}),
        ("root forgotten", {"paired": "d.std(ddof=1) / n"}),
        ("of one difference", {"paired": "d.std(ddof=1)"}),
        ("n - 1 unpaired", {"dof2": "n - 1"}),
        ("deviations add", {"unpaired": "(first.std(ddof=1) + second.std(ddof=1)) / n**0.5"}),
        ("full width", {"paired": "2 * d.std(ddof=1) / n**0.5"}),
    )
}

RIGHT["05", 2] = {
    "by hand, float64": """
def sharpened_ttm(student_logits, teacher_logits, labels):
    log_q = (2 * student_logits.double()).log_softmax(-1)
    log_p = (teacher_logits.double() / 4).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
""",
    "kl_div": """
def sharpened_ttm(student_logits, teacher_logits, labels):
    log_q = torch.log_softmax(student_logits / 0.5, -1)
    p = torch.softmax(teacher_logits / 4, -1)
    return torch.nn.functional.kl_div(log_q, p, reduction="batchmean")
""",
    "cross-entropy minus entropy": """
def sharpened_ttm(student_logits, teacher_logits, labels):
    p = torch.softmax(teacher_logits / 4, -1)
    entropy = torch.special.entr(p).sum(-1).mean()
    return torch.nn.functional.cross_entropy(2 * student_logits, p) - entropy
""",
    "loops": """
def sharpened_ttm(student_logits, teacher_logits, labels):
    total = 0
    for z, v in zip(student_logits, teacher_logits):
        p, q = (v / 4).softmax(-1), (2 * z).softmax(-1)
        total = total + sum(a * (a / b).log() for a, b in zip(p, q))
    return total / len(student_logits)
""",
}
WRONG["05", 2] = {
    name: f"""
def sharpened_ttm(z, v, labels):
    p, q = (v{teacher}).softmax(-1), (z{student}).softmax(-1)
    return {result}
"""
    for name, teacher, student, result in (
        ("softened", " / 4", " / 2", "(p * (p / q).log()).sum(-1).mean()"),
        ("plain TTM", " / 4", "", "(p * (p / q).log()).sum(-1).mean()"),
        ("teacher not softened", "", " * 2", "(p * (p / q).log()).sum(-1).mean()"),
        ("KD", " / 4", " / 4", "16 * (p * (p / q).log()).sum(-1).mean()"),
        ("KL reversed", " / 4", " * 2", "(q * (q / p).log()).sum(-1).mean()"),
        ("cross-entropy", " / 4", " * 2", "-(p * q.log()).sum(-1).mean()"),
        ("sum", " / 4", " * 2", "(p * (p / q).log()).sum()"),
        ("mean over classes too", " / 4", " * 2", "(p * (p / q).log()).mean()"),
        ("other logarithm", " / 4", " * 2", "(p * (p / q).log2()).sum(-1).mean()"),
        ("no gradient", " / 4", " * 2", "(p * (p / q).log()).sum(-1).mean().detach()"),
    )
}

SEEDS = """
def seeds_needed(deviation, half_width):
    n = {start}
    while {quantile} * deviation / {root} > half_width:
        n += 1
    return {result}
"""
COUNT = {"start": 2, "quantile": "stats.t.ppf(0.975, n - 1)", "root": "n**0.5", "result": "n"}
RIGHT["05", 3] = {
    "a generator": """
import itertools
def seeds_needed(deviation, half_width):
    def width(n):
        return stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n)
    return next(n for n in itertools.count(2) if width(n) <= half_width)
""",
    "an array": """
def seeds_needed(deviation, half_width):
    n = np.arange(2, 10_000)
    return n[stats.t.ppf(0.975, n - 1) * deviation / np.sqrt(n) <= half_width][0]
""",
    "a tensor": SEEDS.format(**COUNT | {"result": "torch.tensor(n)"}),
    "root search": """
def seeds_needed(deviation, half_width):
    def excess(n):
        return stats.t.ppf(0.975, n - 1) * deviation / n**0.5 - half_width
    return 2 if excess(2) <= 0 else math.ceil(scipy.optimize.brentq(excess, 2, 1e6))
""",
}
WRONG["05", 3] = {
    name: SEEDS.format(**COUNT | {key: value})
    for name, key, value in (
        ("normal quantile", "quantile", "1.96"),
        ("one-sided", "quantile", "stats.t.ppf(0.95, n - 1)"),
        ("n degrees of freedom", "quantile", "stats.t.ppf(0.975, n)"),
        ("root forgotten", "root", "n"),
        ("n - 1 below", "root", "(n - 1) ** 0.5"),
        ("one too many", "result", "n + 1"),
        ("one too few", "result", "n - 1"),
        ("starts at 3", "start", "3"),
        ("not whole", "result", "n + 0.5 if n > 2 else n"),
    )
}

# Notebook 6 ---------------------------------------------------------------------------------------

ECE = """
def calibration_error(confidence, correct, bins):
    error = {start}
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            {add}
    return {result}
"""
BINS = {
    "start": "0.0",
    "add": "error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())",
    "result": "error",
}
RIGHT["06", 1] = {
    "closed on the left": """
def calibration_error(confidence, correct, bins):
    index = np.minimum((np.asarray(confidence, dtype=float) * bins).astype(int), bins - 1)
    return sum(abs((correct - confidence)[index == k].sum()) for k in set(index)) / len(correct)
""",
    "torch, float32": """
def calibration_error(confidence, correct, bins):
    c, r = torch.tensor(confidence).float(), torch.tensor(correct).float()
    index = torch.bucketize(c, torch.arange(1, bins + 1) / bins).clamp(max=bins - 1)
    return torch.zeros(bins).index_add_(0, index, r - c).abs().sum() / len(c)
""",
    "histogram": """
def calibration_error(confidence, correct, bins):
    edges = np.linspace(0, 1, bins + 1)
    total, _ = np.histogram(confidence, edges, weights=correct * 1.0 - confidence)
    return np.abs(total).sum() / len(confidence)
""",
    "loops": """
def calibration_error(confidence, correct, bins):
    groups = {}
    for c, r in zip(confidence.tolist(), correct.tolist()):
        groups.setdefault(min(math.ceil(c * bins - 1e-12), bins), []).append((c, r))
    error = 0
    for pairs in groups.values():
        error += abs(sum(r for _, r in pairs) - sum(c for c, _ in pairs)) / len(confidence)
    return error
""",
}
WRONG["06", 1] = {
    **{
        name: ECE.format(**BINS | {"add": f"r, c = correct[inside], confidence[inside]; {add}"})
        for name, add in (
            ("sign kept", "error += inside.mean() * (r.mean() - c.mean())"),
            ("squared", "error += inside.mean() * (r.mean() - c.mean()) ** 2"),
            ("not weighted", "error += abs(r.mean() - c.mean()) / bins"),
            ("largest", "error = max(error, abs(r.mean() - c.mean()))"),
            ("sums", "error += abs(r.sum() - c.sum())"),
        )
    },
    "per cent": ECE.format(**BINS | {"result": "100 * error"}),
    "every answer alone": "calibration_error = lambda c, r, bins: np.abs(r - c).mean()",
    "one bin": "calibration_error = lambda c, r, bins: abs(r.mean() - c.mean())",
    "confidence 1 lost": ECE.format(**BINS)
    .replace("confidence > k", "confidence >= k")
    .replace("confidence <= (", "confidence < ("),
    "bins fixed": ECE.format(**BINS).replace("range(bins)", "range(bins := 10)"),
    "bins of equal counts": """
def calibration_error(confidence, correct, bins):
    parts = np.array_split(np.argsort(confidence), bins)
    gaps = [abs((correct[i] - confidence[i]).sum()) for i in parts]
    return sum(gaps) / len(confidence)
""",
}

SCALE = """
def scale_condition(logits, labels, tau):
    q = scipy.special.softmax({scaled}, axis={axis})
    expected, label = (q * {z}).sum(1), {z}[np.arange(len(labels)), labels]
    return {result}
"""
LAW = {"scaled": "logits / tau", "axis": 1, "z": "logits", "result": "(expected - label).mean()"}
RIGHT["06", 2] = {
    "scipy": SCALE.format(**LAW),
    "torch, float32": """
def scale_condition(logits, labels, tau):
    z, y = torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)
    return ((z / tau).softmax(-1) * z).sum(-1).mean() - z.gather(1, y[:, None]).mean()
""",
    "autograd": """
def scale_condition(logits, labels, tau):
    c = torch.tensor(1 / tau, requires_grad=True)
    nll = torch.nn.functional.cross_entropy(c * torch.tensor(logits), torch.tensor(labels))
    return torch.autograd.grad(nll, c)[0]
""",
    "differences": """
def scale_condition(logits, labels, tau):
    def nll(c):
        log_q = scipy.special.log_softmax(c * logits, axis=1)
        return -log_q[np.arange(len(labels)), labels].mean()
    return (nll(1 / tau + 1e-5) - nll(1 / tau - 1e-5)) / 2e-5
""",
    "loops": """
def scale_condition(logits, labels, tau):
    total = 0
    for z, y in zip(logits.tolist(), labels.tolist()):
        e = [math.exp((x - max(z)) / tau) for x in z]
        total += sum(a * x for a, x in zip(e, z)) / sum(e) - z[y]
    return total / len(labels)
""",
}
WRONG["06", 2] = {
    name: SCALE.format(**LAW | {key: value})
    for name, key, value in (
        ("turned round", "result", "(label - expected).mean()"),
        ("sum", "result", "(expected - label).sum()"),
        ("size", "result", "abs((expected - label).mean())"),
        ("not scaled", "scaled", "logits"),
        ("multiplied", "scaled", "logits * tau"),
        ("over samples", "axis", "0"),
        ("logits divided", "z", "(logits / tau)"),
        ("probabilities", "z", "q"),
        ("derivative for tau", "result", "-(expected - label).mean() / tau**2"),
        ("largest logit", "result", "(expected - logits.max(1)).mean()"),
    )
}

RIGHT["06", 3] = {
    "power": "undo = lambda temperature: temperature**-1",
    "tensor, float32": "undo = lambda temperature: torch.tensor(temperature).reciprocal()",
    "numpy": "undo = lambda temperature: np.exp(-np.log(temperature))",
    "root search": """
def undo(temperature):
    return scipy.optimize.brentq(lambda tau: tau * temperature - 1, 1e-3, 1e3, xtol=1e-6)
""",
}
WRONG["06", 3] = {
    "T": "undo = lambda temperature: temperature",
    "nothing": "undo = lambda temperature: 1.0",
    "T squared": "undo = lambda temperature: temperature**-2",
    "root": "undo = lambda temperature: temperature**-0.5",
    "one less": "undo = lambda temperature: 1 / (temperature - 1)",
    "right at 2 only": "undo = lambda temperature: 0.5",
}

# Notebook 7 ---------------------------------------------------------------------------------------

RIGHT["07", 1] = {
    "steps": """
def learning_rate(epoch, start=0.05):
    if epoch > 210:
        return start / 1000
    if epoch > 180:
        return start / 100
    return start / 10 if epoch > 150 else start
""",
    "numpy, float32": """
def learning_rate(epoch, start=0.05):
    return np.float32(start) * np.float32(0.1) ** (epoch > np.array([150, 180, 210])).sum()
""",
    "a tensor": """
def learning_rate(epoch, start=0.05):
    return start * 0.1 ** torch.bucketize(torch.tensor(epoch), torch.tensor([150, 180, 210]))
""",
    "loops": """
def learning_rate(epoch, start=0.05):
    for now in range(1, epoch + 1):
        start *= 0.1 if now in (151, 181, 211) else 1
    return start
""",
}
WRONG["07", 1] = {
    name: f"""
def learning_rate(epoch, start=0.05):
    return {result}
"""
    for name, result in (
        ("one early", "start * 0.1 ** sum(epoch >= m for m in (150, 180, 210))"),
        ("one late", "start * 0.1 ** sum(epoch > m + 1 for m in (150, 180, 210))"),
        ("once only", "start * 0.1 ** (epoch > 150)"),
        ("two milestones", "start * 0.1 ** sum(epoch > m for m in (150, 180))"),
        ("halved", "start * 0.5 ** sum(epoch > m for m in (150, 180, 210))"),
        ("subtracted", "start * (1 - 0.1 * sum(epoch > m for m in (150, 180, 210)))"),
        ("start ignored", "0.05 * 0.1 ** sum(epoch > m for m in (150, 180, 210))"),
        ("starts at 0.1", "2 * start * 0.1 ** sum(epoch > m for m in (150, 180, 210))"),
    )
}

BETA = """
def beta(share, temperature):
    return {beta}


def share_of(weight, temperature):
    return {share}
"""
EQ19 = {"beta": "share / (1 - share) * temperature", "share": "weight / (weight + temperature)"}
RIGHT["07", 2] = {
    "odds": BETA.format(
        beta="temperature / (1 / share - 1)",
        share="1 / (1 + temperature / weight)",
    ),
    "tensors, float32": BETA.format(
        beta="torch.tensor(share / (1 - share) * temperature, dtype=torch.float32)",
        share="torch.as_tensor(weight / (weight + temperature), dtype=torch.float32)",
    ),
    "root search, one at a time": """
def beta(share, temperature):
    return math.exp(math.log(share) - math.log1p(-share)) * temperature


def share_of(weight, temperature):
    def gap(x):
        return x * temperature - weight * (1 - x)
    return scipy.optimize.brentq(gap, 0, 1, xtol=1e-6)
""",
}
WRONG["07", 2] = {
    name: BETA.format(**EQ19 | {key: value})
    for name, key, value in (
        ("T forgotten", "beta", "4 * share / (1 - share)"),
        ("odds forgotten", "beta", "share * temperature * 10"),
        ("upside down", "beta", "(1 - share) / share * temperature"),
        ("T squared", "beta", "share / (1 - share) * temperature**2"),
        ("T forgotten in the share", "share", "weight / (1 + weight)"),
        ("complement", "share", "temperature / (weight + temperature)"),
        ("ratio", "share", "weight / temperature"),
        ("1/T", "share", "weight * temperature / (weight * temperature + 1)"),
    )
}
WRONG["07", 2]["both wrong, one undoes the other"] = BETA.format(
    beta="share / (1 - share) * 4", share="weight / (weight + 4)"
)

INTERVAL = """
def interval(first, second):
    d = first - second
    half = {half}
    return {result}
"""
PAIRS = {
    "half": "2.776 * d.std(ddof=1) / 5**0.5",
    "result": "d.mean(), d.mean() - half, d.mean() + half",
}
RIGHT["07", 3] = {
    "scipy": """
def interval(first, second):
    result = scipy.stats.ttest_rel(first, second).confidence_interval()
    return [np.mean(first - second), result.low, result.high]
""",
    "torch, float32": """
def interval(first, second):
    d = torch.tensor(first - second, dtype=torch.float32)
    half = 2.776 * d.std() / 5**0.5
    return torch.stack([d.mean(), d.mean() - half, d.mean() + half])
""",
    "loops": """
def interval(first, second):
    d = [a - b for a, b in zip(first, second)]
    mean = sum(d) / 5
    half = 2.776 * math.sqrt(sum((x - mean) ** 2 for x in d) / 4 / 5)
    return mean, mean - half, mean + half
""",
}
WRONG["07", 3] = {
    name: INTERVAL.format(**PAIRS | {key: value})
    for name, key, value in (
        ("divided by n", "half", "2.776 * d.std() / 5**0.5"),
        ("normal quantile", "half", "1.96 * d.std(ddof=1) / 5**0.5"),
        ("root forgotten", "half", "2.776 * d.std(ddof=1) / 5"),
        ("of one difference", "half", "2.776 * d.std(ddof=1)"),
        ("not paired", "half", "2.776 * ((first.var(ddof=1) + second.var(ddof=1)) / 5) ** 0.5"),
        ("variance", "half", "2.776 * d.var(ddof=1) / 5**0.5"),
        ("ends swapped", "result", "d.mean(), d.mean() + half, d.mean() - half"),
        ("turned round", "result", "-d.mean(), -d.mean() - half, -d.mean() + half"),
        ("half-width", "result", "d.mean(), half, half"),
        ("mean forgotten", "result", "d.mean() - half, d.mean() + half"),
    )
}

CHANCE = """
def chance(seeds, difference, deviation, trials=4000):
    random = np.random.default_rng(0)
    d = random.normal({centre}, {spread}, (trials, seeds))
    half = {quantile} * d.std(axis=1, ddof={ddof}) / {root}
    return {result}
"""
DRAW = {
    "centre": "difference",
    "spread": "deviation",
    "quantile": "stats.t.ppf(0.975, seeds - 1)",
    "ddof": 1,
    "root": "seeds**0.5",
    "result": "(d.mean(axis=1) > half).mean()",
}
RIGHT["07", 4] = {
    "torch, float32, no seed": """
def chance(seeds, difference, deviation, trials=4000):
    d = difference + deviation * torch.randn(trials, seeds, dtype=torch.float32)
    half = stats.t.ppf(0.975, seeds - 1) * d.std(dim=1) / math.sqrt(seeds)
    return (d.mean(1) - half > 0).float().mean()
""",
    "loops": """
import random
def chance(seeds, difference, deviation, trials=4000):
    hits, quantile = 0, stats.t.ppf(0.975, seeds - 1)
    for _ in range(trials):
        d = [random.gauss(difference, deviation) for _ in range(seeds)]
        mean = sum(d) / seeds
        s = math.sqrt(sum((x - mean) ** 2 for x in d) / (seeds - 1))
        hits += mean > quantile * s / math.sqrt(seeds)
    return hits / trials
""",
    "exact": """
def chance(seeds, difference, deviation, trials=4000):
    shift = difference / deviation * math.sqrt(seeds)
    return stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, shift)
""",
    "p values": """
def chance(seeds, difference, deviation, trials=4000):
    d = np.random.default_rng(5).normal(difference, deviation, (trials, seeds))
    return (stats.ttest_1samp(d, 0, axis=1, alternative="greater").pvalue < 0.025).mean()
""",
}
WRONG["07", 4] = {
    name: CHANCE.format(**DRAW | {key: value})
    for name, key, value in (
        ("normal quantile", "quantile", "1.96"),
        ("one-sided", "quantile", "stats.t.ppf(0.95, seeds - 1)"),
        ("divided by n", "ddof", "0"),
        ("root forgotten", "root", "seeds"),
        ("of one difference", "root", "1"),
        ("no difference", "centre", "0"),
        ("difference ignored", "centre", "0.3"),
        ("variance for deviation", "spread", "deviation**2"),
        ("deviation ignored", "spread", "0.3"),
        ("mean above zero", "result", "(d.mean(axis=1) > 0).mean()"),
        ("interval holds the truth", "result", "(abs(d.mean(axis=1) - difference) < half).mean()"),
        ("undecided", "result", "(d.mean(axis=1) <= half).mean()"),
        ("per cent", "result", "100 * (d.mean(axis=1) > half).mean()"),
        ("a count", "result", "(d.mean(axis=1) > half).sum()"),
    )
}

# Notebook 8 ---------------------------------------------------------------------------------------

PLAN = """
def plan(pictures, batch_size, processes, epoch):
    passed = {passed}
    return {steps}, {share}, 0.1 * 0.1**passed
"""
RUN = {
    "passed": "sum(epoch >= milestone for milestone in (30, 60, 90))",
    "steps": "math.ceil(pictures / batch_size)",
    "share": "batch_size // processes",
}
RIGHT["08", 1] = {
    "whole numbers": """
def plan(pictures, batch_size, processes, epoch):
    return -(-pictures // batch_size), batch_size / processes, 0.1 ** (1 + min(epoch // 30, 3))
""",
    "numpy, float32": """
def plan(pictures, batch_size, processes, epoch):
    rate = np.float32(0.1) * np.float32(0.1) ** np.searchsorted([30, 60, 90], epoch, "right")
    return np.ceil(pictures / batch_size), batch_size / processes, rate
""",
    "tensors": """
def plan(pictures, batch_size, processes, epoch):
    steps = torch.ceil(torch.tensor(pictures, dtype=torch.float64) / batch_size)
    rate = torch.tensor(0.1) ** (1 + sum(epoch >= m for m in (30, 60, 90)))
    return steps, torch.tensor(batch_size) // processes, rate
""",
    "loops": """
def plan(pictures, batch_size, processes, epoch):
    steps = len(range(0, pictures, batch_size))
    rate = 0.1
    for now in range(epoch + 1):
        rate = rate / 10 if now in (30, 60, 90) else rate
    return [steps, batch_size // processes, rate]
""",
}
WRONG["08", 1] = {
    name: PLAN.format(**RUN | {key: value})
    for name, key, value in (
        ("last batch dropped", "steps", "pictures // batch_size"),
        ("rounded", "steps", "round(pictures / batch_size)"),
        ("one more", "steps", "pictures // batch_size + 1"),
        ("not whole", "steps", "pictures / batch_size"),
        ("steps of a process", "steps", "math.ceil(pictures / batch_size / processes)"),
        ("a batch for each", "share", "batch_size"),
        ("pictures shared", "share", "pictures // processes"),
        ("one late", "passed", "sum(epoch > milestone for milestone in (30, 60, 90))"),
        ("counted from 1", "passed", "sum(epoch + 1 >= milestone for milestone in (30, 60, 90))"),
        ("third forgotten", "passed", "sum(epoch >= milestone for milestone in (30, 60))"),
        ("once", "passed", "epoch >= 30"),
    )
}

ERRORS = """
def unpaired_error(first, second, pictures):
    a, b = first / 100, second / 100
    return {unpaired}


def paired_error(difference, disagree, pictures):
    return {paired}
"""
POINTS = {
    "unpaired": "100 * ((a * (1 - a) + b * (1 - b)) / pictures) ** 0.5",
    "paired": "100 * np.sqrt(disagree - (difference / 100) ** 2) / np.sqrt(pictures)",
}
RIGHT["08", 2] = {
    "in per cent throughout": """
def unpaired_error(first, second, pictures):
    return math.sqrt((first * (100 - first) + second * (100 - second)) / pictures)


def paired_error(difference, disagree, pictures):
    return math.sqrt((1e4 * disagree - difference**2) / pictures)
""",
    "tensors, float32": """
def unpaired_error(first, second, pictures):
    r = torch.tensor([first, second], dtype=torch.float32) / 100
    return 100 * torch.sqrt((r * (1 - r)).sum() / pictures)


def paired_error(difference, disagree, pictures):
    return 100 * torch.sqrt((torch.tensor(disagree) - (difference / 100) ** 2) / pictures)
""",
    "numpy": ERRORS.format(**POINTS),
    "loops": """
def unpaired_error(first, second, pictures):
    total = 0.0
    for rate in (first / 100, second / 100):
        total += rate * (1 - rate) / pictures
    return 100 * total**0.5


def paired_error(difference, disagree, pictures):
    shift = difference / 100
    up, down = (disagree + shift) / 2, (disagree - shift) / 2
    variance = up * (1 - shift) ** 2 + down * (1 + shift) ** 2 + (1 - up - down) * shift**2
    return 100 * (variance / pictures) ** 0.5
""",
}
WRONG["08", 2] = {
    name: ERRORS.format(**POINTS | {key: value})
    for name, key, value in (
        ("as shares", "unpaired", "((a * (1 - a) + b * (1 - b)) / pictures) ** 0.5"),
        (
            "errors add",
            "unpaired",
            "100 * ((a * (1 - a)) ** 0.5 + (b * (1 - b)) ** 0.5) / pictures**0.5",
        ),
        ("one only", "unpaired", "100 * (a * (1 - a) / pictures) ** 0.5"),
        (
            "variances subtract",
            "unpaired",
            "100 * abs((a * (1 - a) - b * (1 - b)) / pictures) ** 0.5",
        ),
        ("variance", "unpaired", "100 * (a * (1 - a) + b * (1 - b)) / pictures"),
        ("root of n forgotten", "unpaired", "100 * (a * (1 - a) + b * (1 - b)) ** 0.5 / pictures"),
        ("paired as shares", "paired", "((disagree - (difference / 100) ** 2) / pictures) ** 0.5"),
        ("difference forgotten", "paired", "100 * (disagree / pictures) ** 0.5"),
        (
            "difference in points",
            "paired",
            "100 * abs((disagree - difference**2) / pictures) ** 0.5",
        ),
        (
            "difference not squared",
            "paired",
            "100 * ((disagree - difference / 100) / pictures) ** 0.5",
        ),
        ("d (1 - d)", "paired", "100 * (disagree * (1 - disagree) / pictures) ** 0.5"),
    )
}

RIGHT["08", 3] = {
    "float64": """
def weight(logits, temperature):
    return (logits.double().log_softmax(-1) / temperature).exp().sum(-1)
""",
    "logsumexp twice": """
def weight(logits, temperature):
    v = logits - logits.amax(-1, keepdim=True)
    log_U = (v / temperature).logsumexp(-1) - v.logsumexp(-1) / temperature
    return torch.exp(log_U)
""",
    "numpy": """
def weight(logits, temperature):
    log_p = scipy.special.log_softmax(np.asarray(logits), axis=-1)
    return np.exp(scipy.special.logsumexp(log_p / temperature, axis=-1))
""",
    "loops": """
def weight(logits, temperature):
    if logits.ndim > 1:
        return [weight(row, temperature) for row in logits]
    v = logits.tolist()
    log_sum = max(v) + math.log(sum(math.exp(x - max(v)) for x in v))
    return sum(math.exp((x - log_sum) / temperature) for x in v)
""",
}
WRONG["08", 3] = {
    name: f"weight = lambda v, temperature: {result}"
    for name, result in (
        ("softmax", "(v.softmax(-1) ** (1 / temperature)).sum(-1)"),
        ("softmax in float64", "(v.double().softmax(-1) ** (1 / temperature)).sum(-1)"),
        (
            "exponentials",
            "((v.exp() / v.exp().sum(-1, keepdim=True)) ** (1 / temperature)).sum(-1)",
        ),
        ("T for 1/T", "(v.log_softmax(-1) * temperature).logsumexp(-1).exp()"),
        ("of the softened", "(v / temperature).log_softmax(-1).logsumexp(-1).exp()"),
        ("exp forgotten", "(v.log_softmax(-1) / temperature).logsumexp(-1)"),
        ("over pictures", "(v.log_softmax(-1) / temperature).logsumexp(0).exp()"),
        ("mean", "(v.log_softmax(-1) / temperature).exp().mean(-1)"),
        ("one number", "(v.log_softmax(-1) / temperature).logsumexp(-1).exp().mean()"),
    )
}

SHARE = """
def mean_share(width, height, draws=100_000):
    share = {low} + (1 - {low}) * torch.rand(draws)
    ratio = {ratio}
    w, h = (width * height * share * ratio).sqrt(), (width * height * share / ratio).sqrt()
    return {result}
"""
VIEW = {
    "low": 0.08,
    "ratio": "(math.log(4 / 3) * (2 * torch.rand(draws) - 1)).exp()",
    "result": "share[(w <= width) & (h <= height)].mean()",
}
RIGHT["08", 4] = {
    "numpy": """
def mean_share(width, height, draws=100_000):
    random = np.random.default_rng(3)
    share = random.uniform(0.08, 1, draws)
    ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), draws))
    w, h = np.sqrt(width * height * share * ratio), np.sqrt(width * height * share / ratio)
    return share[(w <= width) & (h <= height)].mean()
""",
    "pixels": SHARE.format(
        **VIEW | {"result": "(w * h)[(w <= width) & (h <= height)].mean() / (width * height)"}
    ),
    "loops": """
import random
def mean_share(width, height, draws=40_000):
    kept = []
    for _ in range(draws):
        share = random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w = math.sqrt(width * height * share * ratio)
        if w <= width and w / ratio <= height:
            kept.append(share)
    return sum(kept) / len(kept)
""",
    "integral": """
def mean_share(width, height, draws=0):
    ratio = np.exp(np.linspace(math.log(3 / 4), math.log(4 / 3), 2001))
    top = np.minimum(1, np.minimum(width / height / ratio, height / width * ratio))
    length = top - 0.08
    return (length * (top + 0.08) / 2).sum() / length.sum()
""",
}
WRONG["08", 4] = {
    name: SHARE.format(**VIEW | {key: value})
    for name, key, value in (
        ("all draws", "result", "share.mean()"),
        ("width only", "result", "share[w <= width].mean()"),
        ("height only", "result", "share[h <= height].mean()"),
        ("cut off", "result", "(w.clamp(max=width) * h.clamp(max=height)).mean() / width / height"),
        ("either fits", "result", "share[(w <= width) | (h <= height)].mean()"),
        ("misfits count 0", "result", "(share * ((w <= width) & (h <= height))).mean()"),
        ("from 0", "low", "0.0"),
        ("always square", "ratio", "torch.ones(draws)"),
        ("per cent", "result", "100 * share[(w <= width) & (h <= height)].mean()"),
        ("pixels", "result", "(w * h)[(w <= width) & (h <= height)].mean()"),
    )
}

EFFECTS = """
def effects(kd, kd_scaled, ttm, ttm_scaled):
    entropy = {entropy}
    scale = {scale}
    return entropy, scale, {interaction}
"""
SQUARE = {
    "entropy": "((ttm - kd) + (ttm_scaled - kd_scaled)) / 2",
    "scale": "((kd_scaled - kd) + (ttm_scaled - ttm)) / 2",
    "interaction": "(ttm_scaled - kd_scaled) - (ttm - kd)",
}
RIGHT["09", 1] = {
    "means of rows": """
def effects(kd, kd_scaled, ttm, ttm_scaled):
    square = np.array([[kd, kd_scaled], [ttm, ttm_scaled]], dtype=np.float32)
    rows, columns = square.mean(axis=1), square.mean(axis=0)
    return rows[1] - rows[0], columns[1] - columns[0], np.diff(np.diff(square, axis=0))[0, 0]
""",
    "regression": """
def effects(kd, kd_scaled, ttm, ttm_scaled):
    y = torch.tensor([kd, kd_scaled, ttm, ttm_scaled], dtype=torch.float64)
    a = torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64) / 2
    b = torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64) / 2
    return a @ y, b @ y, 4 * (a * b) @ y
""",
    "scale as the rest": """
def effects(kd, kd_scaled, ttm, ttm_scaled):
    small, large = ttm - kd, ttm_scaled - kd_scaled
    entropy = (small + large) / 2
    return [entropy, ttm_scaled - kd - entropy, large - small]
""",
}
WRONG["09", 1] = {
    name: EFFECTS.format(**SQUARE | {key: value})
    for name, key, value in (
        ("at KD's scale only", "entropy", "ttm - kd"),
        ("at TTM's scale only", "entropy", "ttm_scaled - kd_scaled"),
        ("as published", "entropy", "ttm_scaled - kd"),
        ("not halved", "entropy", "(ttm - kd) + (ttm_scaled - kd_scaled)"),
        ("of KD only", "scale", "kd_scaled - kd"),
        ("crossed", "scale", "((kd_scaled - kd) + (ttm - ttm_scaled)) / 2"),
        ("sign", "scale", "((kd - kd_scaled) + (ttm - ttm_scaled)) / 2"),
        ("interaction halved", "interaction", "((ttm_scaled - kd_scaled) - (ttm - kd)) / 2"),
        ("interaction turned", "interaction", "(ttm - kd) - (ttm_scaled - kd_scaled)"),
        ("no interaction", "interaction", "0.0"),
    )
}

SAME = """
def same_student(factor, rate, decay):
    return {same}


def factor_for(decay_ratio):
    return {factor}
"""
KNOBS = {"same": "(factor * rate, decay / factor)", "factor": "1 / decay_ratio"}
RIGHT["09", 2] = {
    "list": SAME.format(same="[rate * factor, decay * factor**-1]", factor="decay_ratio**-1"),
    "float32": SAME.format(
        same="np.array([factor * rate, decay / factor], dtype=np.float32)",
        factor="torch.tensor(1.0) / decay_ratio",
    ),
    "search": """
def same_student(factor, rate, decay):
    return factor * rate, decay / factor


def factor_for(decay_ratio):
    gap = lambda c: same_student(math.exp(c), 1.0, 1 / decay_ratio)[1] - 1
    return math.exp(scipy.optimize.brentq(gap, -10, 10, xtol=1e-6))
""",
}
WRONG["09", 2] = {
    name: SAME.format(**KNOBS | {key: value})
    for name, key, value in (
        ("decay kept", "same", "(factor * rate, decay)"),
        ("decay grows", "same", "(factor * rate, decay * factor)"),
        ("rate kept", "same", "(rate, decay / factor)"),
        ("rate falls", "same", "(rate / factor, decay / factor)"),
        ("momentum too", "same", "(factor * rate / (1 - 0.9), decay / factor)"),
        ("turned round", "factor", "decay_ratio"),
        ("nothing", "factor", "1.0"),
        ("root", "factor", "decay_ratio**-0.5"),
    )
}

ALARM = """
def false_alarm(contrasts, level=0.05):
    return {alarm}


def level_each(contrasts, together=0.05):
    return {each}
"""
LOOKS = {"alarm": "1 - (1 - level) ** contrasts", "each": "together / contrasts"}
RIGHT["09", 3] = {
    "logarithms": ALARM.format(
        alarm="-math.expm1(contrasts * math.log1p(-level))", each="together * contrasts**-1"
    ),
    "binomial": ALARM.format(
        alarm="scipy.stats.binom.sf(0, contrasts, level)",
        each="np.float32(together) / np.float32(contrasts)",
    ),
    "loops": """
def false_alarm(contrasts, level=0.05):
    none = torch.tensor(1.0)
    for _ in range(contrasts):
        none = none * (1 - level)
    return 1 - none


def level_each(contrasts, together=0.05):
    return torch.tensor(together) / contrasts
""",
    "simulated": ALARM.format(
        alarm="(np.random.default_rng(5).uniform(size=(100_000, contrasts)) < level)"
        ".any(axis=1).mean()",
        each="together / contrasts",
    ),
}
WRONG["09", 3] = {
    name: ALARM.format(**LOOKS | {key: value})
    for name, key, value in (
        ("added up", "alarm", "contrasts * level"),
        ("all of them", "alarm", "level**contrasts"),
        ("none of them", "alarm", "(1 - level) ** contrasts"),
        ("one only", "alarm", "level"),
        ("exactly one", "alarm", "contrasts * level * (1 - level) ** (contrasts - 1)"),
        ("5 % each", "each", "together"),
        ("Sidak", "each", "1 - (1 - together) ** (1 / contrasts)"),
        ("two-sided twice", "each", "together / 2 / contrasts"),
        ("root", "each", "together / contrasts**0.5"),
    )
}

POWER = """
def power(effect, seeds, contrasts=1, trials=20_000):
    d = np.random.default_rng(1).normal(effect, 1, (trials, seeds))
    t = {t}
    half = t * d.std(axis=1, ddof={ddof}) / {root}
    return {result}
"""
SEEDS = {
    "t": "scipy.stats.t.isf(0.025 / contrasts, seeds - 1)",
    "ddof": "1",
    "root": "seeds**0.5",
    "result": "(d.mean(axis=1) - half > 0).mean()",
}
RIGHT["09", 4] = {
    "exact": """
def power(effect, seeds, contrasts=1, trials=0):
    t = scipy.stats.t.ppf(1 - 0.025 / contrasts, seeds - 1)
    return 1 - scipy.stats.nct.cdf(t, seeds - 1, effect * math.sqrt(seeds))
""",
    "tensors, float32": """
def power(effect, seeds, contrasts=1, trials=20_000):
    d = effect + torch.randn(trials, seeds, generator=torch.Generator().manual_seed(0))
    t = d.mean(1) / d.std(1) * seeds**0.5
    return (t > float(scipy.stats.t.isf(0.025 / contrasts, seeds - 1))).float().mean()
""",
    "loops, the package's interval": """
from ttm_lab.analysis import paired_interval
def power(effect, seeds, contrasts=1, trials=4000):
    random = np.random.default_rng(2)
    above = 0
    for _ in range(trials):
        d = [random.normal(effect, 1) for _ in range(seeds)]
        above += paired_interval(d, contrasts=contrasts)[1] > 0
    return above / trials
""",
    "numpy": POWER.format(**SEEDS),
}
WRONG["09", 4] = {
    name: POWER.format(**SEEDS | {key: value})
    for name, key, value in (
        ("Bonferroni forgotten", "t", "scipy.stats.t.isf(0.025, seeds - 1)"),
        ("5 % above", "t", "scipy.stats.t.isf(0.05 / contrasts, seeds - 1)"),
        ("normal quantile", "t", "scipy.stats.norm.isf(0.025 / contrasts)"),
        ("t times contrasts", "t", "contrasts * scipy.stats.t.isf(0.025, seeds - 1)"),
        ("n in the deviation", "ddof", "0"),
        ("root of n forgotten", "root", "1"),
        ("n for its root", "root", "seeds"),
        ("mean above zero", "result", "(d.mean(axis=1) > 0).mean()"),
        ("upper end", "result", "(d.mean(axis=1) + half > 0).mean()"),
        ("missed", "result", "(d.mean(axis=1) < half).mean()"),
        ("per cent", "result", "100 * (d.mean(axis=1) > half).mean()"),
    )
}

HOLM = """
def holm(p):
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    raised = {raised}
    adjusted = np.empty(len(p))
    adjusted[order] = {adjusted}
    return adjusted
"""
STEPS = {
    "raised": "np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))",
    "adjusted": "np.minimum(raised, 1)",
}
RIGHT["09", 5] = {
    "loops": """
def holm(p):
    found, largest = [None] * len(p), 0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        largest = max(largest, p[k] * (len(p) - rank))
        found[k] = min(largest, 1)
    return found
""",
    "tensors, float32": """
def holm(p):
    p, order = torch.tensor(p, dtype=torch.float32).sort()
    raised = (p * torch.arange(len(p), 0, -1)).cummax(0).values.clamp(max=1)
    return raised[order.argsort()]
""",
    "no sorting": """
def holm(p):
    p = np.asarray(p)
    steps = [p[k] * (p >= p[k]).sum() for k in range(len(p))]
    return [min(1, max(s for s, x in zip(steps, p) if x <= p[k])) for k in range(len(p))]
""",
}
WRONG["09", 5] = {
    name: HOLM.format(**STEPS | {key: value})
    for name, key, value in (
        ("Bonferroni", "raised", "p[order] * len(p)"),
        ("no running maximum", "raised", "p[order] * np.arange(len(p), 0, -1)"),
        ("counted up", "raised", "np.maximum.accumulate(p[order] * np.arange(1, len(p) + 1))"),
        (
            "false discoveries",
            "raised",
            "np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]",
        ),
        ("above 1", "adjusted", "raised"),
    )
} | {
    "sorted": "def holm(p):\n    p = np.sort(p)\n"
    "    return np.minimum(np.maximum.accumulate(p * np.arange(len(p), 0, -1)), 1)"
}

DRAW = """
def draw(labels, pictures, random):
    places = []
    for k in {classes}:
        there = np.flatnonzero(labels == k)
        places += {chosen}
    return {result}
"""
FAIR = {
    "classes": "np.unique(labels)",
    "chosen": "list(random.permutation(there)[:pictures])",
    "result": "np.array(places)",
}
RIGHT["10", 1] = {
    "a list": DRAW.format(**FAIR | {"result": "places"}),
    "a tensor": DRAW.format(**FAIR | {"result": "torch.tensor(places)"}),
    "choice": DRAW.format(
        **FAIR | {"chosen": "list(random.choice(there, min(pictures, len(there)), replace=False))"}
    ),
    "one shuffle of all": """
def draw(labels, pictures, random):
    left, places = dict.fromkeys(labels.tolist(), pictures), []
    for k in random.permutation(len(labels)):
        if left[int(labels[k])]:
            left[int(labels[k])] -= 1
            places.append(k)
    return places
""",
}
WRONG["10", 1] = {
    name: DRAW.format(**FAIR | {key: value})
    for name, key, value in (
        ("always the first", "chosen", "list(there[:pictures])"),
        (
            "always the same",
            "chosen",
            "list(np.random.default_rng(0).permutation(there)[:pictures])",
        ),
        ("with repeats", "chosen", "list(random.choice(there, pictures))"),
        ("one too many", "chosen", "list(random.permutation(there)[:pictures + 1])"),
        ("the last class forgotten", "classes", "range(labels.max())"),
        ("labels in place of places", "result", "labels[np.array(places)]"),
    )
} | {
    "from all at once": "def draw(labels, pictures, random):\n"
    "    return random.permutation(len(labels))[: 3 * pictures]"
}

SHARE = """
def class_accuracy(labels, answers):
    return np.mean([{share} for k in {classes}])
"""
EVEN = {"share": "(answers[labels == k] == k).mean()", "classes": "np.unique(labels)"}
RIGHT["10", 2] = {
    "loops": """
def class_accuracy(labels, answers):
    found = {}
    for label, answer in zip(labels, answers):
        found.setdefault(int(label), []).append(float(label == answer))
    return sum(sum(f) / len(f) for f in found.values()) / len(found)
""",
    "counts": """
def class_accuracy(labels, answers):
    right, there = np.bincount(labels, answers == labels), np.bincount(labels)
    return (right[there > 0] / there[there > 0]).mean()
""",
    "weights, float32": """
def class_accuracy(labels, answers):
    weight = 1 / np.bincount(labels)[labels]
    return np.float32(np.average(labels == answers, weights=weight))
""",
}
WRONG["10", 2] = {
    "plain accuracy": "def class_accuracy(labels, answers):\n    return (labels == answers).mean()",
} | {
    name: SHARE.format(**EVEN | {key: value})
    for name, key, value in (
        ("precision", "share", "(labels[answers == k] == k).sum() / max((answers == k).sum(), 1)"),
        ("classes of the answers", "classes", "np.unique(answers)"),
        ("empty classes as zero", "share", "((answers == k) & (labels == k)).sum() / len(labels)"),
        ("per cent", "share", "100 * (answers[labels == k] == k).mean()"),
    )
}

LAYER = """
def last_layer(V, c, m, s):
    W = {W}
    return W, {b}
"""
FOLDED = {"W": "V / s", "b": "c - W @ m"}
RIGHT["10", 3] = {
    "loops": """
def last_layer(V, c, m, s):
    W = [[v / d for v, d in zip(row, s)] for row in V]
    return W, [x - sum(w * y for w, y in zip(row, m)) for x, row in zip(c, W)]
""",
    "a diagonal matrix": LAYER.format(W="V @ np.diag(1 / s)", b="c - V @ np.diag(1 / s) @ m"),
    "tensors": """
def last_layer(V, c, m, s):
    V, c, m, s = (torch.tensor(x) for x in (V, c, m, s))
    return V / s, c - (V / s * m).sum(1)
""",
    "by asking": """
def last_layer(V, c, m, s):
    answer = lambda x: V @ ((x - m) / s) + c
    b = answer(np.zeros(len(m)))
    return np.stack([answer(unit) - b for unit in np.eye(len(m))], axis=1), b
""",
}
WRONG["10", 3] = {
    name: LAYER.format(**FOLDED | {key: value})
    for name, key, value in (
        ("times s", "W", "V * s"),
        ("variance", "W", "V / s**2"),
        ("mean forgotten", "b", "c"),
        ("plus", "b", "c + W @ m"),
        ("mean without s", "b", "c - V @ m"),
    )
} | {
    "transposed": "def last_layer(V, c, m, s):\n    W = V / s\n    return W.T, c - W @ m",
    "c scaled, too": LAYER.format(W="V / s", b="c / s.mean() - W @ m"),
}

ERROR = """
def standard_error(seed_sd, draw_sd, seeds, draws):
    return {error}


def with_endless_draws(seed_sd, seeds):
    return {least}
"""
BOTH = {
    "error": "((seed_sd**2 + draw_sd**2 / draws) / seeds) ** 0.5",
    "least": "seed_sd / seeds**0.5",
}
RIGHT["10", 4] = {
    "hypot": ERROR.format(
        error="math.hypot(seed_sd, draw_sd / math.sqrt(draws)) / math.sqrt(seeds)",
        least="seed_sd / math.sqrt(seeds)",
    ),
    "two parts": ERROR.format(
        error="np.sqrt(seed_sd**2 / seeds + draw_sd**2 / (seeds * draws))",
        least="standard_error(seed_sd, 0, seeds, 1)",
    ),
    "tensors, float32": ERROR.format(
        error="torch.tensor((seed_sd**2 + draw_sd**2 / draws) / seeds).sqrt()",
        least="torch.tensor(seed_sd**2 / seeds).sqrt()",
    ),
}
WRONG["10", 4] = {
    name: ERROR.format(**BOTH | {key: value})
    for name, key, value in (
        ("draws as seeds", "error", "((seed_sd**2 + draw_sd**2) / (seeds * draws)) ** 0.5"),
        ("seeds alone", "error", "seed_sd / seeds**0.5"),
        ("draws not averaged", "error", "((seed_sd**2 + draw_sd**2) / seeds) ** 0.5"),
        ("variance", "error", "(seed_sd**2 + draw_sd**2 / draws) / seeds"),
        ("deviations added", "error", "(seed_sd + draw_sd / draws**0.5) / seeds**0.5"),
        ("nothing left", "least", "0.0"),
        ("n for its root", "least", "seed_sd / seeds"),
    )
}

# Notebook 11 --------------------------------------------------------------------------------------

ROUNDED = """
def rounded(weight, bits):
    m = {m}
    scale = {scale} / m
    scale = torch.where(scale > 0, scale, 1.0)
    return {result}
"""
HOW = {
    "m": "2 ** (bits - 1) - 1",
    "scale": "weight.abs().max(dim=1, keepdim=True).values",
    "result": "(weight / scale).round() * scale",
}
RIGHT["11", 1] = {
    "numpy": """
def rounded(weight, bits):
    weight, m = np.asarray(weight), 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-30) / m
    return np.rint(weight / scale) * scale
""",
    "loops": """
def rounded(weight, bits):
    m, rows = 2 ** (bits - 1) - 1, []
    for row in weight.tolist():
        scale = max(map(abs, row)) / m or 1.0
        rows.append([round(w / scale) * scale for w in row])
    return rows
""",
    "float32": ROUNDED.format(**HOW | {"scale": "weight.float().abs().amax(1, keepdim=True)"}),
}
WRONG["11", 1] = {
    name: ROUNDED.format(**HOW | {key: value})
    for name, key, value in (
        ("one scale for all", "scale", "weight.abs().max()"),
        ("a scale an input", "scale", "weight.abs().max(dim=0, keepdim=True).values"),
        ("one number too many", "m", "2 ** (bits - 1)"),
        ("no sign", "m", "2**bits - 1"),
        ("towards zero", "result", "(weight / scale).trunc() * scale"),
        ("whole numbers", "result", "(weight / scale).round()"),
    )
} | {
    "zero divided by zero": ROUNDED.format(**HOW).replace(
        "    scale = torch.where(scale > 0, scale, 1.0)\n", ""
    )
}

FOLDED = """
def folded(weight, norm):
    factor = {factor}
    return {weight}, {bias}
"""
PARTS = {
    "factor": "norm.weight / (norm.running_var + norm.eps).sqrt()",
    "weight": "weight * factor.reshape(-1, 1, 1, 1)",
    "bias": "norm.bias - norm.running_mean * factor",
}
RIGHT["11", 2] = {
    "asked of the layer": """
def folded(weight, norm):
    zero, one = (torch.full((1, len(norm.bias), 1, 1), v, dtype=weight.dtype) for v in (0.0, 1.0))
    bias = norm(zero).flatten()
    return weight * (norm(one).flatten() - bias)[:, None, None, None], bias
""",
    "numpy": """
def folded(weight, norm):
    gamma, beta = (p.detach().numpy() for p in (norm.weight, norm.bias))
    factor = gamma / np.sqrt(norm.running_var.numpy() + norm.eps)
    bias = beta - norm.running_mean.numpy() * factor
    return weight.numpy() * factor[:, None, None, None], bias
""",
    "float32": FOLDED.format(
        **PARTS | {"weight": "(weight * factor[:, None, None, None]).float()"}
    ),
}
WRONG["11", 2] = {
    name: FOLDED.format(**PARTS | {key: value})
    for name, key, value in (
        ("no epsilon", "factor", "norm.weight / norm.running_var.sqrt()"),
        ("variance", "factor", "norm.weight / (norm.running_var + norm.eps)"),
        ("gamma forgotten", "factor", "1 / (norm.running_var + norm.eps).sqrt()"),
        ("mean not scaled", "bias", "norm.bias - norm.running_mean"),
        ("mean forgotten", "bias", "norm.bias"),
        ("weights as they were", "weight", "weight"),
    )
}

MASK = """
def fewest_bytes(count, f, bits=16):
    h = {h}
    return {total}


def share_needed(b):
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        f = (low + high) / 2
        low, high = ({turn})
    return high
"""
FILE = {
    "h": "-sum(p * math.log2(p) for p in (f, 1 - f) if p > 0)",
    "total": "count * (h + bits * (1 - f)) / 8",
    "turn": "(low, f) if f > 0.1 and fewest_bytes(8, f) < b else (f, high)",
}
RIGHT["11", 3] = {
    "bisection": MASK.format(**FILE),
    "scipy": """
def fewest_bytes(count, f, bits=16):
    h = scipy.stats.entropy([f, 1 - f], base=2)
    return count * (h + bits * (1 - f)) / 8


def share_needed(b):
    return scipy.optimize.brentq(lambda f: fewest_bytes(8, f) - b, 0.3, 1 - 1e-9)
""",
    "tensors, float32": """
def fewest_bytes(count, f, bits=16):
    f = torch.tensor(float(f))
    h = torch.special.entr(torch.stack([f, 1 - f])).sum() / math.log(2)
    return count * (h + bits * (1 - f)) / 8


def share_needed(b):
    shares = torch.linspace(0, 1, 2001)
    return min(float(f) for f in shares if fewest_bytes(8, f) < b)
""",
}
WRONG["11", 3] = {
    name: MASK.format(**FILE | {key: value})
    for name, key, value in (
        ("a mask for nothing", "h", "0.0"),
        ("a bit a mask", "h", "1.0"),
        ("nats", "h", "-sum(p * math.log(p) for p in (f, 1 - f) if p > 0)"),
        ("bits for bytes", "total", "count * (h + bits * (1 - f))"),
        ("zeros that take bits", "total", "count * (h + bits * f) / 8"),
        ("never 16 bits", "turn", "(low, f) if fewest_bytes(8, f, b) < b else (f, high)"),
    )
}

PAIRS_WON = """
def auroc(known, unknown):
    won = [{won} for u in unknown for k in known]
    return {result}
"""
COUNTING = {"won": "(u > k) + 0.5 * (u == k)", "result": "sum(won) / len(won)"}
RIGHT["13", 1] = {
    "signs": PAIRS_WON.format(won="(np.sign(u - k) + 1) / 2", result="np.mean(won)"),
    "ranks": """
def auroc(known, unknown):
    ranks = scipy.stats.rankdata(np.concatenate([known, unknown]))[len(known):]
    return (ranks.mean() - (len(unknown) + 1) / 2) / len(known)
""",
    "float32 tensors": """
def auroc(known, unknown):
    k, u = (torch.as_tensor(x, dtype=torch.float64) for x in (known, unknown))
    larger = (u[:, None] > k).float() + 0.5 * (u[:, None] == k).float()
    return larger.mean()
""",
}
WRONG["13", 1] = {
    name: PAIRS_WON.format(**COUNTING | {key: value})
    for name, key, value in (
        ("ties lose", "won", "u > k"),
        ("ties win", "won", "u >= k"),
        ("turned round", "won", "(u < k) + 0.5 * (u == k)"),
        ("a count", "result", "sum(won)"),
        ("per unknown", "result", "sum(won) / len(unknown)"),
        ("folded", "result", "max(np.mean(won), 1 - np.mean(won))"),
    )
}

HOT = """
def hot(logits):
    return {score}
"""
RIGHT["13", 2] = {
    "sum of gaps": HOT.format(score="-(logits.max(axis=1, keepdims=True) - logits).sum(axis=1)"),
    "float32": HOT.format(
        score="logits.astype(np.float32).mean(1) - logits.astype(np.float32).max(1)"
    ),
    "loop": HOT.format(score="[sum(row) / len(row) - max(row) for row in logits]"),
    "positive": HOT.format(score="np.exp((logits.mean(1) - logits.max(1)) / 100)"),
}
WRONG["13", 2] = {
    name: HOT.format(score=score)
    for name, score in (
        ("largest logit", "-logits.max(axis=1)"),
        ("mean logit", "-logits.mean(axis=1)"),
        ("the cold end", "np.sort(logits, axis=1)[:, -2] - logits.max(axis=1)"),
        ("turned round", "logits.max(axis=1) - logits.mean(axis=1)"),
        ("spread", "-logits.std(axis=1)"),
        ("energy", "-scipy.special.logsumexp(logits, axis=1)"),
        ("one number", "logits.mean() - logits.max()"),
    )
}

ENERGIES = """
def renyi_of_energies(energy_1, energy_t, temperature):
    return {entropy}
"""
RIGHT["13", 3] = {
    "step by step": """
def renyi_of_energies(energy_1, energy_t, temperature):
    log_sum = -energy_t / temperature + energy_1 / temperature
    return log_sum / (1 - 1 / temperature)
""",
    "tensor": ENERGIES.format(
        entropy="(torch.tensor(float(energy_t)) - energy_1) / (1 - temperature)"
    ),
    "float32": ENERGIES.format(
        entropy="np.float32(energy_1 - energy_t) / np.float32(temperature - 1)"
    ),
}
WRONG["13", 3] = {
    name: ENERGIES.format(entropy=entropy)
    for name, entropy in (
        ("turned round", "(energy_t - energy_1) / (temperature - 1)"),
        ("no division", "energy_1 - energy_t"),
        ("by T", "(energy_1 - energy_t) / temperature"),
        ("order T", "(energy_1 - energy_t) / (1 / temperature - 1)"),
        ("logarithm only", "(energy_1 - energy_t) / temperature / (temperature - 1)"),
    )
}

# Notebook 12 --------------------------------------------------------------------------------------

RIGHT["12", 1] = {
    "loops": """
def effective_size(weights):
    total = sum(float(w) for w in weights)
    return total * total / sum(float(w) ** 2 for w in weights)
""",
    "normalised first, tensors": """
def effective_size(weights):
    w = torch.as_tensor(weights)
    return 1 / (w / w.sum()).square().sum()
""",
    "by the spread": """
def effective_size(weights):
    w = np.asarray(weights)
    return len(w) / (1 + (w.std() / w.mean()) ** 2)
""",
}
WRONG["12", 1] = {
    "only the squares": "def effective_size(weights): return 1 / (weights**2).sum()",
    "a share": "def effective_size(w): return w.sum() ** 2 / (w**2).sum() / len(w)",
    "turned over": "def effective_size(w): return (w**2).sum() / w.sum() ** 2",
    "how many count": "def effective_size(w): return (w > 0).sum()",
    "of the largest": "def effective_size(w): return w.sum() / w.max()",
}
RATIOS = """
def over_mixture(d, target_share):
    return {mixture}


def over_source(d, target_share):
    return {source}
"""
DENSITIES = {
    "mixture": "d / target_share",
    "source": "d / (1 - d) * (1 - target_share) / target_share",
}
RIGHT["12", 2] = {
    "loops": """
def over_mixture(d, target_share):
    return [float(x) / target_share for x in d]


def over_source(d, target_share):
    odds = (1 - target_share) / target_share
    return [float(x) / (1 - float(x)) * odds for x in d]
""",
    "float32": """
def over_mixture(d, target_share):
    return torch.as_tensor(d).float() / target_share


def over_source(d, target_share):
    d = torch.as_tensor(d).float()
    return (torch.logit(d) - math.log(target_share / (1 - target_share))).exp()
""",
    "one through the other": """
def over_mixture(d, target_share):
    return np.asarray(d) / target_share


def over_source(d, target_share):
    return over_mixture(d, target_share) / over_mixture(1 - d, 1 - target_share)
""",
}
WRONG["12", 2] = {
    name: RATIOS.format(**DENSITIES | {key: value})
    for name, key, value in (
        ("as answered", "mixture", "d"),
        ("times the share", "mixture", "d * target_share"),
        ("over its mean", "mixture", "d / d.mean()"),
        ("the source's", "mixture", "(1 - d) / (1 - target_share)"),
        ("odds alone", "source", "d / (1 - d)"),
        ("shares the wrong way", "source", "d / (1 - d) * target_share / (1 - target_share)"),
        ("turned over", "source", "(1 - d) / d * target_share / (1 - target_share)"),
    )
}
BIAS = """
def bias(mixture, target, weights, losses):
    return {weighted} - {wanted}
"""
MEANS = {
    "weighted": "(mixture * weights * losses).sum() / (mixture * weights).sum()",
    "wanted": "(target * losses).sum()",
}
RIGHT["12", 3] = {
    "average": """
def bias(mixture, target, weights, losses):
    return np.average(losses, weights=mixture * weights) - np.average(losses, weights=target)
""",
    "loops": """
def bias(mixture, target, weights, losses):
    total = sum(m * w for m, w in zip(mixture, weights))
    seen = sum(m * w * x for m, w, x in zip(mixture, weights, losses)) / total
    return float(seen - sum(t * x for t, x in zip(target, losses)))
""",
    "tensors, float32": """
def bias(mixture, target, weights, losses):
    given = mixture, target, weights, losses
    m, t, w, x = (torch.tensor(a, dtype=torch.float32) for a in given)
    tilted = m * w / (m @ w)
    return (tilted - t) @ x
""",
}
WRONG["12", 3] = {
    name: BIAS.format(**MEANS | {key: value})
    for name, key, value in (
        ("weights not normalised", "weighted", "(mixture * weights * losses).sum()"),
        (
            "mean of weights without the mixture",
            "weighted",
            "(mixture * weights * losses).sum() / weights.mean()",
        ),
        ("no mixture", "weighted", "(weights * losses).sum() / weights.sum()"),
        ("from the mixture", "wanted", "(mixture * losses).sum()"),
        ("plain mean", "wanted", "losses.mean()"),
        ("size only", "wanted", "2 * (target * losses).sum()"),
    )
}

# Notebook 14 --------------------------------------------------------------------------------------

RIGHT["14", 1] = {
    "by logarithms": """
def top_after(top, classes, temperature):
    if top == 1:
        return 1.0
    gap = math.log(top) - math.log((1 - top) / (classes - 1))
    return 1 / (1 + (classes - 1) * math.exp(-gap / temperature))
""",
    "numpy, all classes": """
def top_after(top, classes, temperature):
    p = np.full(classes, (1 - top) / (classes - 1))
    p[0] = top
    p = p ** (1 / temperature)
    return (p / p.sum())[0]
""",
    "torch, float32": """
def top_after(top, classes, temperature):
    rest = torch.full((classes - 1,), (1 - top) / (classes - 1))
    z = torch.cat([torch.tensor([float(top)]), rest]).log()
    return (z / temperature).softmax(0)[0]
""",
}
WRONG["14", 1] = {
    "T for 1/T": """
def top_after(top, classes, temperature):
    rest = (classes - 1) * ((1 - top) / (classes - 1)) ** temperature
    return top**temperature / (top**temperature + rest)
""",
    "the rest as one class": """
def top_after(top, classes, temperature):
    first, rest = top ** (1 / temperature), (1 - top) ** (1 / temperature)
    return first / (first + rest)
""",
    "not normalised": "top_after = lambda top, classes, temperature: top ** (1 / temperature)",
    "K for K - 1": """
def top_after(top, classes, temperature):
    first = top ** (1 / temperature)
    return first / (first + classes * ((1 - top) / classes) ** (1 / temperature))
""",
}
RIGHT["14", 2] = {
    "brentq": """
def rule_by_hand(p, nats):
    def excess(T):
        q = p ** (1 / T)
        q = q / q.sum(-1, keepdim=True)
        return float((p * (p.log() - q.log())).sum(-1).mean()) - nats
    return scipy.optimize.brentq(excess, 1.0, 1000.0)
""",
    "numpy": """
def rule_by_hand(p, nats):
    p, low, high = np.asarray(p), 1.0, 1000.0
    for _ in range(60):
        T = (low + high) / 2
        q = p ** (1 / T)
        q /= q.sum(1, keepdims=True)
        if (p * np.log(p / q)).sum(1).mean() <= nats:
            low = T
        else:
            high = T
    return low
""",
    "the library": "rule_by_hand = lambda p, nats: largest_temperature(p.log(), nats)",
}
WRONG["14", 2] = {
    "the other direction": """
def rule_by_hand(p, nats):
    def excess(T):
        q = p ** (1 / T)
        q = q / q.sum(-1, keepdim=True)
        return float((q * (q.log() - p.log())).sum(-1).mean()) - nats
    return scipy.optimize.brentq(excess, 1.0, 1000.0)
""",
    "sum over rows": """
def rule_by_hand(p, nats):
    return largest_temperature(p.log(), nats / len(p))
""",
    "always two": "rule_by_hand = lambda p, nats: 2.0",
}
RIGHT["14", 3] = {
    "loops": """
def two_means(losses, counts):
    rows = [[float(x) for x, c in zip(r, k) if c] for r, k in zip(losses, counts)]
    flat = [x for row in rows for x in row]
    return sum(flat) / len(flat), sum(sum(row) / len(row) for row in rows) / len(rows)
""",
    "filled": """
def two_means(losses, counts):
    kept = torch.where(counts, losses, 0)
    return kept.sum() / counts.sum(), (kept.sum(1) / counts.sum(1)).mean()
""",
    "nanmean": """
def two_means(losses, counts):
    kept = losses.masked_fill(~counts, torch.nan)
    return kept.nanmean(), kept.nanmean(1).mean()
""",
}
WRONG["14", 3] = {
    "times the mask": """
def two_means(losses, counts):
    kept = losses * counts
    return kept.sum() / counts.sum(), (kept.sum(1) / counts.sum(1)).mean()
""",
    "over all places": """
def two_means(losses, counts):
    kept = torch.where(counts, losses, 0)
    return kept.mean(), kept.mean(1).mean()
""",
    "the same twice": """
def two_means(losses, counts):
    return losses[counts].mean(), losses[counts].mean()
""",
}
