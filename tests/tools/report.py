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
import operator
import re
import textwrap

import benchmark
import matplotlib.pyplot as plt
import nbclient
import nbformat
import notebook as source
import numpy as np
from benchmark import FEW_SEEDS, FRESH_SEEDS, FRONTIER, SEEDS
from notebook import NOTEBOOK, REPOSITORY, cell_of, fingerprint
from scipy import stats

PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
RECORDS = REPOSITORY / "tests" / "records"
SPEED = RECORDS / "speed.json"
IMAGES = REPOSITORY / "images"
STORED_MODEL = source.DATA.with_name("CODE9.keras")
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}  # cells, and their figures
REQUIRED = 99.4
PUBLIC = np.genfromtxt(RECORDS / "public.tsv", delimiter="\t", dtype=None, names=True)


def run_and_store():
    """Execute the notebook in place, and keep its network."""
    notebook, before = source.read_notebook(), NOTEBOOK.read_bytes()
    language = dict(notebook.metadata["language_info"])  # the run adds its Python's
    save = nbformat.v4.new_code_cell(f"model.save({str(STORED_MODEL)!r})")
    notebook.cells.append(save)
    nbclient.execute(notebook, REPOSITORY, coalesce_streams=True, record_timing=False)
    notebook.cells.pop()
    for cell in notebook.cells:
        if "outputs" in cell:  # less what TensorFlow's libraries say of the machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata |= {"language_info": language}
    notebook.metadata["code9"] = {"fingerprint": fingerprint()}
    if NOTEBOOK.read_bytes() != before:
        raise RuntimeError("CODE9.ipynb was changed while it ran: run it again.")
    nbformat.write(notebook, NOTEBOOK)


def stored_run(notebook):
    """Return the notebook's own record, or raise LookupError if it is of other code."""
    record, current = source.find_record(notebook), source.settings_of("assignment")
    code = notebook.metadata["code9"]["fingerprint"]
    if (code, record["settings"]) != (fingerprint(), current):
        raise LookupError("The stored run is of other code: run report.py --run.")
    return record


def stored_times():
    """Return what speed.py stored, or raise LookupError if it is of other code."""
    stored = json.loads(SPEED.read_text("utf-8"))
    if stored["fingerprint"] != fingerprint():
        raise LookupError("The times are of other code: run tests/tools/speed.py.")
    return stored


def table(head, rows):
    """Return a Markdown table; a name in the head that begins with > is set right."""
    names = head.split("|")
    rules = ["---:" if name.startswith(">") else "---" for name in names]
    lines = [[name.lstrip(">") for name in names], rules, *rows]
    return "\n".join(f"|{'|'.join(map(str, line))}|" for line in lines)


def accuracies(records):
    """Return the accuracies of records in per cent."""
    return 100 * np.array([record["accuracy"] for record in records])


def spread(values, digits=2):
    """Return mean and deviation of values, as text."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def effect(values, digits):
    """Return the mean of differences ± half its 95% interval, bold if not zero."""
    low, high = stats.ttest_1samp(values, 0).confidence_interval()  # Student's t
    text = f"{(low + high) / 2:+.{digits}f} ± {(high - low) / 2:.{digits}f}"
    return f"**{text}**" if low * high > 0 else text


def grouped(records, *keys):
    """Return the records in lists, by what they have under the keys."""
    groups = collections.defaultdict(list)
    for record in records:
        groups[operator.itemgetter(*keys)(record)].append(record)
    return groups


def by_training(records, seeds):
    """Return the records on the test images from the seeds, by the training's name."""
    whole = [r for r in records if r["fold"] is None and r["name"] != "other widths"]
    return grouped([r for r in whole if r["seed"] in seeds], "name")


def by_width(records):
    """Return the records of two recipes and other widths, by recipe and parameters."""
    few = [r for r in records if r["seed"] in FEW_SEEDS]
    named = [r for r in few if r["name"] in (*FRONTIER, "other widths")]
    return dict(sorted(grouped(named, "recipe", "parameters").items()))


def differences(records):
    """Return what each change did on the hold-out: changes of accuracy and of loss.

    That is, by name and the worst first, a pair of lists, with one value for each seed
    and fold; accuracies are in points. Losses are compared only where both learned the
    same labels.
    """
    groups = grouped([r for r in records if r["fold"] is not None], "name")
    base = {(r["seed"], r["fold"]): r for r in groups.pop("as it is")}
    changes = {}
    for name, group in groups.items():
        pairs = [(r, base[r["seed"], r["fold"]]) for r in group]
        points = [100 * (r["accuracy"] - b["accuracy"]) for r, b in pairs]
        alike = [p for p in pairs if p[0]["label_smoothing"] == p[1]["label_smoothing"]]
        changes[name] = points, [r["loss"] - b["loss"] for r, b in alike]
    return dict(sorted(changes.items(), key=lambda item: np.mean(item[1][0])))


def choices_table(records):
    """Return the table of what each choice brings."""
    rows = []
    for name, (points, losses) in differences(records).items():
        loss = effect(losses, 4) if losses else ""
        rows.append((name, effect(points, 3), loss, len(points)))
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
    reached += f"**{spread(accuracies(group))}%** (mean ± deviation)"
    rows = [
        ("test accuracy", "≥ 99.4%", f"{reached} of {len(group)} seeds"),
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
    model, stages = network(), []
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
        first, recipe = group[0], group[0]["recipe"]
        row = [f"{first['parameters']:,}", first["epochs"]]
        for values in map(accuracies, (group, fresh[name])):
            row += [len(values), f"{spread(values, 3)}, worst {min(values):.2f}"]
        rows.append((f"`{recipe}`{name.removeprefix(recipe)}", *row))
    head = "recipe|>parameters|>epochs|>n|>accuracy, %|>fresh n|>accuracy, %"
    return table(head, rows)


def frontier_table(records):
    """Return the table of recipes at other widths."""
    rows = []
    for (recipe, size), group in by_width(records).items():
        filters, values = group[0]["filters"], accuracies(group)
        measured = len(values), spread(values), f"{min(values):.2f}"
        rows.append((f"`{recipe}`", f"{size:,}", f"`{filters}`", *measured))
    return table("recipe|>parameters|filters|>n|>mean, %|>worst", rows)


def smallest(records):
    """Return how small a network is enough on average."""
    size = min(
        size
        for (_, size), group in by_width(records).items()
        if accuracies(group).mean() >= REQUIRED
    )
    tried = f"Of the widths tried, with {len(FEW_SEEDS)} seeds each, the smallest"
    text = f"{tried} whose mean is {REQUIRED:.2f}% or more has {size:,} parameters."
    return textwrap.fill(text, 94)


def public_table():
    """Return the table of what others published, as their own logs show it."""
    rows = []
    for row in PUBLIC:
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

    That is the fastest whose mean over all seeds is as required.
    """
    timed, groups = times["timed"], by_training(records, SEEDS + FRESH_SEEDS)
    ours = [name for name in groups if name in timed]
    good = [name for name in ours if accuracies(groups[name]).mean() >= REQUIRED]
    seconds, name = min((timed[name]["seconds"], name) for name in good)
    text = f"Our fastest training whose mean is {REQUIRED:.2f}% or more is {name}:"
    text += f" {seconds:.0f} s. On the same machine, "
    text += " and ".join(
        f"{other} takes {t['seconds'] / seconds:.1f} times as long"
        f" ({t['epochs']} epochs, to {100 * np.mean(t['accuracies']):.2f}%,"
        f" n = {len(t['accuracies'])})"
        for other, t in timed.items()
        if "accuracies" in t  # not one of ours
    )
    return textwrap.fill(f"{text}.", 94)


def generated_parts(notebook, records):
    """Return the generated parts of all pages by name."""
    record, times = stored_run(notebook), stored_times()
    photographs = (RECORDS / "photographs.tsv").read_text("utf-8").splitlines()
    head, *rows = (line.split("\t") for line in photographs)
    return {
        "rules": rules_table(record, records),
        "log": log(record["history"]),
        "evaluate": f"```text\n{cell_of(notebook, 'evaluate').outputs[-1].text}```",
        "net": net_table(),
        "choices": choices_table(records),
        "seeds": seeds_table(records),
        "frontier": frontier_table(records),
        "public": public_table(),
        "peers": peers_table(times, records),
        "findings": f"{smallest(records)}\n\n{fastest(times, records)}",
        "photographs": table("|>".join(head), rows),
    }


def fill(text, parts):
    """Return the text with each generated part that it names in place."""
    block = r"(?s)(<!-- generated: ([^>]+) -->)\n.*?(<!-- end: \2 -->)"
    return re.sub(block, lambda m: f"{m[1]}\n{parts[m[2]]}\n{m[3]}", text)


def plot_comparison(axis, records):
    """Draw accuracy over parameters: ours and the public ones."""
    groups, blue = by_training(records, SEEDS), {"color": "tab:blue"}
    widths = by_width(records).items()
    for recipe, style in zip(FRONTIER, (".-", ".--"), strict=True):
        means = {size: accuracies(g).mean() for (r, size), g in widths if r == recipe}
        look = {"alpha": 0.5, "label": f"ours, {recipe} at other widths"} | blue
        axis.plot(list(means), list(means.values()), style, **look)
    sizes = [group[0]["parameters"] for group in groups.values()]
    values = np.array([accuracies(group) for group in groups.values()])
    ours = sizes, values.mean(1), values.std(1, ddof=1)
    public = [PUBLIC[column] for column in ("parameters", "accuracy", "deviation")]
    label = "ours, mean of seeds ± deviation"
    axis.errorbar(*ours, fmt="o", capsize=3, label=label, **blue)
    label = "public (± deviation: mean of runs)"
    axis.errorbar(*public, fmt="x", label=label, color="dimgray")
    names = [*groups, *(who.split("/")[0] for who in PUBLIC["who"])]
    spot = {"textcoords": "offset points", "fontsize": 10}
    for name, size, mean in zip(names, *np.hstack([ours[:2], public[:2]]), strict=True):
        if size < 2_000:
            axis.annotate(name, (size, mean), xytext=(-9, 5), ha="right", **spot)
        elif size > 14_000:  # between them there are too many
            axis.annotate(name, (size, mean), xytext=(9, 4), **spot)
    axis.axhline(REQUIRED, linestyle="--", color="black", linewidth=1)
    axis.annotate("required: 99.4%", (9e6, REQUIRED), xytext=(0, 4), ha="right", **spot)
    axis.axvline(15_000, linestyle=":", color="black", linewidth=1)
    axis.annotate("limit: 15,000", (15_000, 99.77), xytext=(4, 0), **spot)
    axis.legend(loc="lower right", fontsize=10)
    axis.set(xscale="log", xlim=(150, 1e7))
    axis.set_xlabel("parameters (of most public ones, trainable only)", fontsize=11)
    axis.set_ylabel("test accuracy (%)", fontsize=11)
    small = PUBLIC["accuracy"][PUBLIC["parameters"] < 15_000]
    above = sum(small >= accuracies(groups["assignment"]).mean().round(2)) or "None"
    title = f"{above} of the {len(small)} small public networks reach our mean"
    axis.set_title(title, fontsize=12)


def plot_ablation(axis, records):
    """Draw the changes: a dot for each pair, means, and 95% intervals."""
    changes = differences(records)
    points = np.array([points for points, _ in changes.values()])
    low, high = stats.ttest_1samp(points, 0, axis=1).confidence_interval()
    mean, error, places = (low + high) / 2, (high - low) / 2, np.arange(len(points))
    axis.plot(points, places + 0.3, ".", color="gray")
    axis.errorbar(mean, places, xerr=error, fmt="D", color="tab:blue", capsize=4)
    axis.set_yticks(places, [textwrap.fill(name, 36) for name in changes])
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=1)
    meaning = "mean of the pairs with its 95% interval; dots: pairs of seed and fold"
    axis.set_xlabel(f"change of hold-out accuracy (percentage points)\n{meaning}")
    told = sum(low * high > 0)
    title = f"{told} of {len(changes)} changes have a 95% interval that excludes zero"
    axis.set_title(title, fontsize=12)


def drawn(plot, records):
    """Return what plot draws on an axis as a PNG."""
    plt.rcdefaults()  # whatever cells of the notebook were run before
    figure, axis = plt.subplots(figsize=(8, 5.6), layout="constrained")
    plot(axis, records)
    figure.savefig(buffer := io.BytesIO(), dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def figures(notebook, records):
    """Return the PNGs that the README shows, by file name."""
    plots = {"comparison.png": plot_comparison, "ablation.png": plot_ablation}
    images = {name: drawn(plot, records) for name, plot in plots.items()}
    for cell, name in SHOWN.items():
        output = cell_of(notebook, cell).outputs[-1]
        images[name] = base64.b64decode(output["data"]["image/png"])
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
