"""Writes the tables and figures of README, tests/README and notebook from the records.

What is generated stands between the markers <!-- generated: NAME --> and
<!-- end: NAME -->; a test fails if it differs from what this program would write. Of
our own results nothing is typed; public.tsv holds what others published. With --run
the notebook is run first, and its outputs and its network are stored.
"""

import argparse
import base64
import collections
import io
import json
import re
import textwrap

import benchmark
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import notebook as source
import numpy as np
from benchmark import FEW_SEEDS, FRESH_SEEDS, SEEDS
from nbclient import NotebookClient
from notebook import NOTEBOOK, REPOSITORY, fingerprint
from scipy import stats

PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
RECORDS = REPOSITORY / "tests" / "records"
SPEED = RECORDS / "speed.json"
IMAGES = REPOSITORY / "images"
STORED_MODEL = source.DATA.with_name("CODE9.keras")
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}  # cells, and their figures
REQUIRED = 99.4
PLAIN = next(name for name in benchmark.ABLATION if name.startswith("plain"))
# The labels of the figure, and where they go; ours have a marker, too.
LABELS = {
    "ruslangrimov": (-8, 1, "right"),
    "JoshWarn": (-8, -4, "right"),
    "Matuzas77": (-9, -4, "right"),
    "tuomaso": (9, -4, "left"),
    "assignment": (9, 6, "left"),
    "compact": (-9, 8, "right"),
    "quick, 2 epochs": (9, 2, "left"),
    "quick": (9, -14, "left"),
}
MARKERS = {"assignment": "o", "compact": "s", "quick": "D", "quick, 2 epochs": "^"}
LINES = {"assignment": ".-", "compact": ".--"}  # of other widths


def run_and_store():
    """Execute the notebook in place, and keep its network."""
    notebook, before = source.read_notebook(), NOTEBOOK.read_bytes()
    language = dict(notebook.metadata["language_info"])  # the run adds its Python's
    unfinished = STORED_MODEL.with_name("unfinished.keras")
    save = f"model.save({str(unfinished)!r})"
    notebook.cells.append(nbformat.v4.new_code_cell(save))
    client = NotebookClient(notebook, coalesce_streams=True, record_timing=False)
    client.execute(cwd=str(REPOSITORY))
    notebook.cells.pop()
    for cell in notebook.cells:
        if "outputs" in cell:  # less what TensorFlow's libraries say of the machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata["language_info"] = language
    notebook.metadata["code9"] = {"fingerprint": fingerprint()}
    if NOTEBOOK.read_bytes() != before:
        unfinished.unlink()
        raise RuntimeError("CODE9.ipynb was changed while it ran: run it again.")
    unfinished.replace(STORED_MODEL)
    nbformat.write(notebook, NOTEBOOK)


def stored_run(notebook):
    """Return the record of the notebook's own run.

    Raises LookupError if there is none of the present code and settings.
    """
    record, current = source.find_record(notebook), source.settings_of("assignment")
    code = notebook.metadata.get("code9", {}).get("fingerprint")
    if not record or code != fingerprint() or record["settings"] != current:
        raise LookupError("The stored run is of other code: run report.py --run.")
    return record


def stored_times():
    """Return what speed.py stored, or raise LookupError if it is of other code."""
    stored = json.loads(SPEED.read_text("utf-8")) if SPEED.exists() else {}
    if stored.get("fingerprint") != fingerprint():
        raise LookupError("The times are of other code: run tests/tools/speed.py.")
    return stored


def output_of(notebook, identifier):
    """Return the first output of the notebook's cell with this id."""
    return next(cell for cell in notebook.cells if cell.id == identifier).outputs[0]


def table(head, rows):
    """Return a Markdown table; a name in the head that begins with > is set right."""
    names = head.split("|")
    rules = ["---:" if name.startswith(">") else "---" for name in names]
    lines = [[name.lstrip(">") for name in names], rules, *rows]
    return "\n".join(f"|{'|'.join(map(str, line))}|" for line in lines)


def tab_separated(name):
    """Return the rows of a file of tab-separated values in tests/records."""
    form = {"delimiter": "\t", "comments": None, "encoding": "utf-8", "dtype": None}
    form |= {"names": True, "deletechars": "", "replace_space": " "}  # names as given
    return np.genfromtxt(RECORDS / f"{name}.tsv", **form)


def accuracies(records):
    """Return the accuracies of records in per cent."""
    return 100 * np.array([record["accuracy"] for record in records])


def spread(values, digits=2):
    """Return mean and deviation of values, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def interval(values):
    """Return mean, half its 95% interval (Student's t), and if that excludes zero."""
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return (low + high) / 2, (high - low) / 2, low * high > 0


def effect(values, digits):
    """Return the mean of differences ± half its 95% interval, bold if not zero."""
    mean, error, told = interval(values)
    text = f"{mean:+.{digits}f} ± {error:.{digits}f}"
    return f"**{text}**" if told else text


def by_training(records, seeds):
    """Return the records on the test images from the seeds, by the training's name."""
    groups = collections.defaultdict(list)
    for record in records:
        whole = record["fold"] is None and record["name"] != "other widths"
        if whole and record["settings"]["seed"] in seeds:
            groups[record["name"]].append(record)
    return groups


def by_width(records, recipe):
    """Return the records of a recipe and of its other widths, by parameters."""
    groups = collections.defaultdict(list)
    for record in records:
        settings, named = record["settings"], record["name"] in (recipe, "other widths")
        if named and settings["recipe"] == recipe and settings["seed"] in FEW_SEEDS:
            groups[record["parameters"]].append(record)
    return dict(sorted(groups.items()))


def differences(records):
    """Return what each change did on the hold-out: changes of accuracy and of loss.

    That is, by name, a pair of lists, with one value for each seed and fold; accuracies
    are in points. Losses are compared only where both learned the same labels. The
    plain baseline comes first, then the worst.
    """
    held_out = [r for r in records if r["fold"] is not None]
    stored = {(r["name"], r["settings"]["seed"], r["fold"]): r for r in held_out}
    changes = collections.defaultdict(lambda: ([], []))
    for (name, *place), record in stored.items():
        base = stored["as it is", *place]
        if name != "as it is":
            points, losses = changes[name]
            points.append(100 * (record["accuracy"] - base["accuracy"]))
            if len({r["settings"]["label_smoothing"] for r in (record, base)}) == 1:
                losses.append(record["loss"] - base["loss"])
    order = sorted(changes, key=lambda n: (n != PLAIN, np.mean(changes[n][0])))
    return {name: changes[name] for name in order}


def choices_table(records):
    """Return the table of what each choice brings."""
    rows = [
        (name, effect(points, 3), effect(losses, 4) if losses else "", len(points))
        for name, (points, losses) in differences(records).items()
    ]
    text = table("one change of `assignment`|>points|>loss|>n", rows)
    base = accuracies(record for record in records if record["name"] == "as it is")
    text += f"\n\nUnchanged: {spread(base)}% of the images held out are right"
    return f"{text} (mean ± standard deviation, n = {len(base)})."


def network():
    """Return the network of the recipe "assignment", not trained."""
    cells = source.run_cells("model", skip=("load", "split", "digits"))
    return cells["build_model"](cells["settings"])


def rules_table(record, records):
    """Return the assignment's rules, and how the stored run and the seeds meet them."""
    model, group = network(), by_training(records, SEEDS)["assignment"]
    dense = sum("Dense" in type(layer).__name__ for layer in model.layers)
    biases = sum(len(v.shape) == 1 for v in model.trainable_variables)
    reached = f"**{100 * record['accuracy']:.2f}%** in the stored run; "
    reached += (
        f"**{spread(accuracies(group))}%** (mean ± deviation) of {len(group)} seeds"
    )
    rows = [
        ("test accuracy", "≥ 99.4%", reached),
        ("parameters", "< 15,000", f"{model.count_params():,}"),
        ("epochs", "≤ 20", record["settings"]["epochs"]),
        ("dense layers", "none", dense or "none"),
        ("trained biases, batch norm's beta included", "none", biases or "none"),
    ]
    return table("rule|required|reached", rows)


def log(history):
    """Return the log of the epochs."""
    lines = ["epoch   loss accuracy val_loss val_accuracy"]
    columns = map(history.get, ("loss", "accuracy", "val_loss", "val_accuracy"))
    for epoch, (a, b, c, d) in enumerate(zip(*columns, strict=True), 1):
        lines.append(f"{epoch:5} {a:6.4f} {b:8.2%} {c:8.4f} {d:12.2%}")
    return "\n".join(["```text", *lines, "```"])


def net_table():
    """Return the table of the stages of the recipe "assignment"."""
    stages, model = [], network()
    for layer in model.layers:
        name = f"`{type(layer).__name__}`"
        if "Conv" in name:  # a stage begins
            stages.append([[], "", 0])
            name += " {}x{}".format(*layer.kernel_size)
        if "Activation" in name:
            name = {"silu": "SiLU"}.get(layer.activation.__name__, name)
        stages[-1][0].append(name)
        stages[-1][1] = "x".join(map(str, layer.output.shape[1:]))
        stages[-1][2] += layer.count_params()
    rows = [(", ".join(names), shape, f"{size:,}") for names, shape, size in stages]
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    total = f"**{model.count_params():,}**"
    rows.append((f"all, {trained:,} of them trained", "", total))
    return table("stage|output|>parameters", rows)


def seeds_table(records):
    """Return the table of our recipes over seeds."""
    ten, fresh = (by_training(records, seeds) for seeds in (SEEDS, FRESH_SEEDS))
    rows = []
    for name, group in ten.items():
        settings, size = group[0]["settings"], f"{group[0]['parameters']:,}"
        recipe, row = settings["recipe"], [settings["epochs"]]
        for values in map(accuracies, (group, fresh[name])):
            row += [len(values), f"{spread(values, 3)}, worst {min(values):.2f}"]
        rows.append((f"`{recipe}`{name.removeprefix(recipe)}", size, *row))
    head = "recipe|>parameters|>epochs|>n|>accuracy, %|>fresh n|>accuracy, %"
    return table(head, rows)


def frontier_table(records):
    """Return the table of recipes at other widths."""
    rows = []
    for recipe in benchmark.FRONTIER:
        for size, group in by_width(records, recipe).items():
            filters, values = group[0]["settings"]["filters"], accuracies(group)
            measured = len(values), spread(values), f"{min(values):.2f}"
            rows.append((f"`{recipe}`", f"{size:,}", f"`{filters}`", *measured))
    return table("recipe|>parameters|filters|>n|>mean, %|>worst", rows)


def smallest(records):
    """Return how small a network is enough on average."""
    size = min(
        size
        for recipe in benchmark.FRONTIER
        for size, group in by_width(records, recipe).items()
        if accuracies(group).mean() >= REQUIRED
    )
    text = (
        f"Of the widths that were tried with {len(FEW_SEEDS)} seeds each, the smallest"
    )
    text += f" whose mean is {REQUIRED:.2f}% or more has {size:,} parameters."
    return textwrap.fill(text, 94)


def public_table():
    """Return the table of what others published, as their own logs show it."""
    rows = []
    for row in tab_separated("public"):
        shown = f"{row['accuracy']:.2f}"
        if row["runs"] > 1:
            shown += f" ± {row['deviation']:.2f}"
        link = f"[{row['who']}](https://github.com/{row['who']})"
        link += row["network"] and f", {row['network']}"
        size = f"{row['parameters']:,}{'T' * (row['counted'] == 'trainable')}"
        rows.append((link, size, f"{row['epochs']:,}", shown, row["runs"]))
    return table("who|>parameters|>epochs|>accuracy, %|>runs", rows)


def peers_table(times, records):
    """Return the table of the stored times of the recipes and of the public nets."""
    groups, rows = by_training(records, SEEDS), []
    for name, t in times["timed"].items():
        theirs = [{"accuracy": accuracy} for accuracy in t.get("accuracies", ())]
        values = accuracies(theirs or groups[name])
        reached = f"{spread(values, 3)} (n = {len(values)})"
        seconds = f"{t['seconds']:.1f}", f"{t['seconds'] / t['epochs']:.1f}"
        rows.append((name, t["epochs"], *seconds, reached, t["settings"]))
    text = table("training|>epochs|>seconds|>an epoch|>ends at, %|settings", rows)
    text += f"\n\nMedians of {times['repeats']} trainings; load average at the start"
    return f"{text} {times['load']:.1f}. {times['machine']}."


def fastest(times, records):
    """Return how many times as long the public nets take as our fastest training.

    That is the fastest whose mean is as required, in both groups of seeds.
    """
    timed = times["timed"]
    groups = [by_training(records, seeds) for seeds in (SEEDS, FRESH_SEEDS)]
    means = {name: [accuracies(g[name]).mean() for g in groups] for name in groups[0]}
    good = [name for name in timed if min(means.get(name, [0])) >= REQUIRED]
    seconds, name = min((timed[name]["seconds"], name) for name in good)
    text = f"Our fastest training whose mean is {REQUIRED:.2f}% or more is {name}:"
    text += f" {seconds:.0f} s. On the same machine, "
    text += " and ".join(
        f"{other} takes {t['seconds'] / seconds:.1f} times as long"
        f" ({t['epochs']} epochs, to {100 * np.mean(t['accuracies']):.2f}%)"
        for other, t in timed.items()
        if "accuracies" in t  # not one of ours
    )
    return textwrap.fill(f"{text}.", 94)


def photographs_table():
    """Return the table of how well photographs are read."""
    rows = tab_separated("photographs")
    return table("|>".join(rows.dtype.names), rows.tolist())


def generated_parts(notebook, records):
    """Return the generated parts of all pages by name."""
    record, times = stored_run(notebook), stored_times()
    return {
        "rules": rules_table(record, records),
        "log": log(record["history"]),
        "evaluate": f"```text\n{output_of(notebook, 'evaluate').text}```",
        "net": net_table(),
        "choices": choices_table(records),
        "seeds": seeds_table(records),
        "frontier": frontier_table(records),
        "public": public_table(),
        "peers": peers_table(times, records),
        "findings": f"{smallest(records)}\n\n{fastest(times, records)}",
        "photographs": photographs_table(),
    }


def fill(text, parts):
    """Return the text with each generated part that it names in place."""
    block = r"(?s)(<!-- generated: ([^>]+) -->)\n.*?(<!-- end: \2 -->)"
    return re.sub(block, lambda m: f"{m[1]}\n{parts[m[2]]}\n{m[3]}", text)


def plot_comparison(axis, records):
    """Draw accuracy over parameters: ours and the public ones."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    spot = {"textcoords": "offset points", "fontsize": 10, "bbox": box}
    dots, public = [], tab_separated("public")
    for row in public:
        name, marker = row["who"].split("/")[0], "+" if row["runs"] == 1 else "x"
        numbers = row["parameters"], row["accuracy"], row["deviation"] or None
        dots.append((name, *numbers, marker, "dimgray"))
    groups = by_training(records, SEEDS)
    for name, group in groups.items():
        values = accuracies(group)
        numbers = group[0]["parameters"], values.mean(), values.std(ddof=1)
        dots.append((name, *numbers, MARKERS.get(name, "o"), "tab:blue"))
    for name, size, mean, deviation, marker, color in dots:
        axis.errorbar(size, mean, deviation, fmt=marker, color=color, capsize=3)
        if name in LABELS:
            *offset, side = LABELS[name]
            place = {"xytext": offset, "ha": side, "color": color}
            axis.annotate(name, (size, mean), **place, **spot)
    axis.plot([], [], "o", label="ours, mean of seeds ± deviation", color="tab:blue")
    axis.plot([], [], "+", label="public, single run", color="dimgray")
    axis.plot([], [], "x", label="public, mean of runs", color="dimgray")
    for recipe, style in LINES.items():
        widths = by_width(records, recipe)
        means = [accuracies(group).mean() for group in widths.values()]
        look = {"label": f"ours, {recipe} at other widths", "color": "tab:blue"}
        axis.plot(list(widths), means, style, alpha=0.5, zorder=1, **look)
    axis.axhline(REQUIRED, linestyle="--", color="black", linewidth=1)
    here = (1.8e6, REQUIRED)
    axis.annotate("required: 99.4%", here, xytext=(0, 4), ha="right", **spot)
    axis.axvline(15_000, linestyle=":", color="black", linewidth=1)
    axis.annotate("limit: 15,000", (15_000, 99.77), xytext=(4, 0), **spot)
    axis.legend(loc="lower right", fontsize=10)
    axis.set(xscale="log", xlim=(250, 2e6))
    axis.set_xlabel("parameters (of most public ones, trainable only)", fontsize=11)
    axis.set_ylabel("test accuracy (%)", fontsize=11)
    small = public["accuracy"][public["parameters"] < 15_000]
    above = sum(small >= accuracies(groups["assignment"]).mean().round(2))
    title = (
        f"{above or 'None'} of the {len(small)} small public networks reach our mean"
    )
    axis.set_title(title, fontsize=12)


def plot_ablation(axis, records):
    """Draw the changes: a dot for each pair, means, and 95% intervals."""
    changes, told = differences(records), 0
    for place, (points, _) in enumerate(changes.values()):
        mean, error, excludes_zero = interval(points)
        told += excludes_zero
        axis.plot(points, [place + 0.3] * len(points), ".", color="gray")
        axis.errorbar(mean, place, xerr=error, fmt="D", color="tab:blue", capsize=4)
    axis.set_yticks(range(len(changes)), [textwrap.fill(name, 36) for name in changes])
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=1)
    meaning = "mean of the pairs with its 95% interval; dots: pairs of seed and fold"
    axis.set_xlabel(f"change of hold-out accuracy (percentage points)\n{meaning}")
    title = f"{told} of {len(changes)} changes have a 95% interval that excludes zero"
    axis.set_title(title, fontsize=12)


def drawn(plot, records):
    """Return what plot draws on an axis as a PNG that names what drew it."""
    plt.rcdefaults()  # whatever cells of the notebook were run before
    figure, axis = plt.subplots(figsize=(8, 5.6), layout="constrained")
    plot(axis, records)
    software, buffer = f"matplotlib {matplotlib.__version__}", io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": software})
    plt.close(figure)
    return buffer.getvalue()


def figures(notebook, records):
    """Return the PNGs that the README shows, by file name."""
    plots = {"comparison.png": plot_comparison, "ablation.png": plot_ablation}
    images = {name: drawn(plot, records) for name, plot in plots.items()}
    for cell, name in SHOWN.items():
        images[name] = base64.b64decode(output_of(notebook, cell)["data"]["image/png"])
    return images


def main():
    """Write the generated parts and the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the notebook first")
    if parser.parse_args().run:
        run_and_store()
    notebook, records = source.read_notebook(), benchmark.whole_records()
    parts = generated_parts(notebook, records)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, parts)
    nbformat.write(notebook, NOTEBOOK)
    for page in PAGES:
        page.write_text(fill(page.read_text("utf-8"), parts), "utf-8")
    for name, content in figures(notebook, records).items():
        (IMAGES / name).write_bytes(content)


if __name__ == "__main__":
    main()
