"""Grades any notebook against the assignment's rules, from its source and outputs.

    python tests/grade.py NOTEBOOK

Nothing of the notebook is executed. Prints a table of the rules, each with pass, fail
or unknown and the evidence, then what makes a claim weak. What cannot be told is called
unknown, never passed. The exit status is 0 if nothing failed, 1 if something did, and
2 if the file is no notebook.
"""

import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

LIMIT, EPOCHS, GOAL = 15_000, 20, 0.994
MOST_BYTES = 50_000_000
CONVOLUTIONS = r"(Separable|Depthwise)?Conv(olution)?[123]d(Transpose)?"
DENSE = ("Dense", "EinsumDense", "Linear", "LazyLinear")
NORMALIZATIONS = r"(Batch|Layer|Group|Instance)Norm\w*"
NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"


@dataclass(frozen=True)
class Finding:
    """One rule, its verdict (pass, fail, unknown or warning), and the evidence."""

    rule: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Submission:
    """What a notebook holds: the calls in its source, its source and printed text."""

    calls: list  # (name of what is called, its keywords by name) of every call
    readable: bool  # whether all of the source could be parsed
    source: str
    cells: list  # (source, printed text) of every code cell
    record: dict | None  # the results record, if it displays one as JSON

    @property
    def printed(self):
        """All that the cells printed."""
        return "\n".join(text for _, text in self.cells)


def joined(value):
    """Return a notebook's text field, a string or a list of lines, as one string."""
    return value if isinstance(value, str) else "".join(map(str, value or []))


def printed_text(cell):
    """Return what the cell printed or displayed as text, without terminal codes."""
    parts = []
    for output in cell.get("outputs") or []:
        data = output.get("data") or {}
        parts.append(joined(output.get("text")) or joined(data.get("text/plain")))
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(parts))
    lines = [re.split(r"[\b\r]", line.rstrip("\b\r"))[-1] for line in text.split("\n")]
    return "\n".join(lines)


def find_calls(source):
    """Return (name, keywords) of every call in the source, or None if it is no Python.

    Magics are passed over; what has another name, by import or assignment, is called by
    its own.
    """
    lines = [re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in source.splitlines()]
    try:
        nodes = list(ast.walk(ast.parse("\n".join(lines))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.asname: [a.name] for n in imports for a in n.names if a.asname}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.setdefault(node.targets[0].id, []).extend(named(node.value))
    calls = []
    for node in nodes:
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            if node.args:
                keywords["first argument"] = ast.unparse(node.args[0])
            calls += [(meant, keywords) for meant in names.get(name) or [name]]
    return calls


def named(value):
    """Return the names that the expression may stand for, as in A if x else B."""
    if isinstance(value, ast.IfExp):
        return named(value.body) + named(value.orelse)
    name = getattr(value, "attr", getattr(value, "id", ""))
    return [name] if name else []


def read_submission(path):
    """Return the notebook at the path, or raise ValueError with what is wrong."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} is larger than {MOST_BYTES:,} bytes")
        notebook = json.loads(path.read_text(encoding="utf-8"))
        stored = notebook.get("cells") or notebook["worksheets"][0]["cells"]
        code = [cell for cell in stored if cell.get("cell_type") == "code"]
        cells = [
            (joined(cell.get("source", cell.get("input"))), printed_text(cell))
            for cell in code
        ]
        outputs = [output for cell in code for output in cell.get("outputs") or []]
        records = [(o.get("data") or {}).get("application/json") for o in outputs]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no notebook that can be read: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no notebook: it does not hold cells") from error
    record = next((r for r in reversed(records) if isinstance(r, dict)), None)
    found = [find_calls(source) for source, _ in cells]
    calls = [call for group in found for call in group or []]
    source = "\n".join(source for source, _ in cells)
    return Submission(calls, None not in found, source, cells, record)


def logged_epochs(submission):
    """Return the epochs of the log, in order, and the accuracies validated there."""
    text = submission.printed
    if rows := re.findall(
        rf"^ *(\d+) +{NUMBER} +{NUMBER} +{NUMBER}% +{NUMBER} +{NUMBER}%", text, re.M
    ):
        return [int(row[0]) for row in rows], [float(row[5]) / 100 for row in rows]
    epochs = [int(n) for n in re.findall(r"^\s*Epoch:? (\d+)/\d+", text, re.M)]
    accuracies = re.findall(rf"val_acc(?:uracy)?: {NUMBER}", text)
    return epochs, [float(accuracy) for accuracy in accuracies]


def evaluated_accuracy(submission):
    """Return the accuracy that a cell with .evaluate( printed, or None."""
    for source, text in reversed(submission.cells):
        evaluations = [k for n, k in find_calls(source) or [] if n == "evaluate"]
        data = evaluations[-1].get("first argument", "") if evaluations else ""
        if re.search(r"test|val", data, re.I):
            if pairs := re.findall(rf"\[\s*{NUMBER},\s*{NUMBER}\s*\]", text):
                return float(pairs[-1][1])
            if found := re.findall(
                rf"\b(?:test )?acc\w*\W+{NUMBER}$", text, re.I | re.M
            ):
                return float(found[-1])
    return None


def judge(rule, known, passed, evidence, missing):
    """Return the finding of a rule: unknown, with what is missing, unless known."""
    if not known:
        return Finding(rule, "unknown", missing)
    return Finding(rule, "pass" if passed else "fail", evidence)


def grade_parameters(submission):
    """Judge the number of parameters by the summary, or by the record."""
    rule = f"fewer than {LIMIT:,} parameters"
    found = re.findall(r"Total params:\s*([\d,]+)", submission.printed)
    optimizer = re.findall(r"Optimizer params:\s*([\d,]+)", submission.printed)
    counts, optimizer = (
        [int(n.replace(",", "")) for n in group if n.strip(",")]
        for group in (found, optimizer)
    )
    # Keras adds the optimizer's variables to the total after a training.
    count = max(counts, default=0) - (max(optimizer, default=0) if counts else 0)
    if optimizer and len(counts) > 1:  # which of them holds the optimizer's is not told
        count = max(count, min(counts))
    evidence = f"the summary says {count:,}"
    missing = "no model.summary() of a built model is stored"
    return judge(rule, count > 0, count < LIMIT, evidence, missing)


def grade_layers(submission):
    """Judge dense layers, biases and offsets by the calls in the source."""
    calls = submission.calls
    convolutions = [c for c in calls if re.fullmatch(CONVOLUTIONS, c[0], re.I)]
    missing = "no convolution is called in a way that can be read"
    if not submission.readable:
        missing = "some cells are no Python that can be read"
    known = convolutions and submission.readable
    dense = sorted({name for name, _ in calls if name in DENSE})
    evidence = f"{', '.join(dense)} is called" if dense else "none is called"
    yield judge("no dense layer", known or dense, not dense, evidence, missing)
    biased = [
        name
        for name, keywords in convolutions
        if keywords.get("use_bias", keywords.get("bias")) != "False"
    ]
    evidence = f"{len(biased)} of {len(convolutions)} convolutions keep a bias"
    yield judge("no biases", known or biased, not biased, evidence, missing)
    norms = [c for c in calls if re.fullmatch(NORMALIZATIONS, c[0])]
    offset = [n for n, k in norms if k.get("center") != "False" and n != "BatchNorm2d"]
    offset += [n for n, k in norms if n == "BatchNorm2d" and k.get("affine") != "False"]
    if offset:
        evidence = f"{len(offset)} of {len(norms)} normalizations keep their offset"
        yield Finding("no offset", "warning", f"{evidence}, a bias by another name")


def grade_training(submission):
    """Judge epochs, their log, the evaluation and the goal."""
    epochs, accuracies = logged_epochs(submission)
    last = max(epochs, default=0)
    asked = [
        keywords.get("epochs", "") for n, keywords in submission.calls if n == "fit"
    ]
    unlogged = sum(int(n) for n in asked if n.isdigit())  # a fit may print nothing
    yield judge(
        f"at most {EPOCHS} epochs",
        epochs,
        max(last, len(epochs), unlogged) <= EPOCHS,
        f"{len(epochs)} logged, numbered to {last}, {unlogged} asked for in figures",
        "no log of epochs is stored",
    )
    whole = epochs == list(range(1, last + 1)) and len(accuracies) >= last
    evidence = f"{len(epochs)} epochs and {len(accuracies)} validations of {last}"
    yield judge("a log of every epoch", epochs, whole, evidence, "no log is stored")
    result = evaluated_accuracy(submission)
    evidence = f"it shows {result}"
    missing = "no cell shows the result of .evaluate("
    yield judge("model.evaluate is shown", result is not None, True, evidence, missing)
    known = result is not None and 0 <= result <= 1
    rule = f"{100 * GOAL:.1f} % on the test set"
    evidence = "" if not known else f"{100 * result:.2f} % by model.evaluate"
    yield judge(rule, known, known and result >= GOAL, evidence, missing)


def find_weaknesses(submission):
    """Yield warnings for what makes the claim weak."""
    epochs, accuracies = logged_epochs(submission)
    steering = ("ReduceLROnPlateau", "EarlyStopping", "ModelCheckpoint")
    for name, keywords in submission.calls:
        first = "path" if name == "ModelCheckpoint" else "first argument"
        monitor = keywords.get("monitor", keywords.get(first, "'val_loss'"))
        if name in steering and "val" in monitor:
            message = f"{name} reads the validated images"
            yield Finding("the test set decides", "warning", message)
    if accuracies and accuracies[0] > 0.993 and len(epochs) > 1:
        message = f"{100 * accuracies[0]:.2f} % after the first epoch"
        yield Finding("a warm start", "warning", message)
    seeds = r"set_random_seed|random\.seed|set_seed|manual_seed"
    if not re.search(seeds, submission.source):
        yield Finding("no seed", "warning", "nothing fixes what is random")
    result = evaluated_accuracy(submission)
    # A net that averages over views says what its weights reach by the log's one view.
    single = (submission.record or {}).get("single_view_accuracy")
    result = single if isinstance(single, float) else result
    if result and accuracies and abs(result - accuracies[-1]) > 0.00006:
        best = abs(result - max(accuracies)) < 0.00006
        message = f"evaluated {result}, last epoch {accuracies[-1]}"
        rule = "the best epoch claimed" if best else "not the last epoch"
        yield Finding(rule, "warning", message)


def grade(path):
    """Return the findings on the notebook at the path; ValueError if it is none."""
    submission = read_submission(path)
    return [
        grade_parameters(submission),
        *grade_layers(submission),
        *grade_training(submission),
        *find_weaknesses(submission),
    ]


def main():
    """Print the table for the notebook that the command line names."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        findings = grade(sys.argv[1])
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    width = max(len(finding.rule) for finding in findings)
    for finding in findings:
        print(f"{finding.rule:{width}}  {finding.verdict:8} {finding.evidence}")
    sys.exit(any(finding.verdict == "fail" for finding in findings))


if __name__ == "__main__":
    main()
