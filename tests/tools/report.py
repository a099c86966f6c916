"""Writes the tables and figures of README, tests/README and notebook from the records.

What is generated stands between the markers <!-- generated: NAME --> and
<!-- end: NAME -->. Of our own results nothing is typed; public.tsv holds what others
published. A test fails if the pages differ from what this program would write. Records
of other code or settings do not count, and what is not measured yet is left out. With
--run the notebook is run first, and its outputs and its network are stored.
"""

import argparse
import base64
import collections
import csv
import functools
import io
import json
import re
import textwrap

import benchmark
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
from benchmark import FRESH_SEEDS, SEEDS, find
from nbclient import NotebookClient
from notebook import (
    DATA,
    NOTEBOOK,
    REPOSITORY,
    find_record,
    fingerprint,
    read_notebook,
    run_cells,
    settings_of,
    write_whole,
)
from scipy import stats

PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
SPEED = REPOSITORY / "tests" / "records" / "speed.json"
RECORDS = REPOSITORY / "tests" / "records"
IMAGES = REPOSITORY / "images"
STORED_MODEL = DATA.with_name("CODE9.keras")
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}  # cells, and their figures
REQUIRED = 0.994
PLAIN = next(name for name in benchmark.ABLATION if name.startswith("plain"))
SCAN = """\
In 141 public repositories, some of them copies, there are 774 runs of 10 to 20 epochs
that start from new weights with fewer than 15,000 parameters. Of these, 231 end at
99.40 % or more and one at 99.60 %; the median is 99.31 %. None is a mean over seeds."""
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
    notebook, before = read_notebook(), NOTEBOOK.read_bytes()
    language = dict(notebook.metadata["language_info"])  # the run adds its Python's
    unfinished = STORED_MODEL.with_name("unfinished.keras")
    notebook.cells.append(nbformat.v4.new_code_cell(f"model.save({str(unfinished)!r})"))
    resources = {"metadata": {"path": str(REPOSITORY)}}
    NotebookClient(notebook, resources=resources, coalesce_streams=True).execute()
    notebook.cells.pop()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # less what TensorFlow's libraries say of the machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata["language_info"] = language
    notebook.metadata["code9"] = {"fingerprint": fingerprint()}
    if NOTEBOOK.read_bytes() != before:
        unfinished.unlink()
        raise RuntimeError("CODE9.ipynb was changed while it ran: the run is dropped.")
    unfinished.replace(STORED_MODEL)
    write_whole(NOTEBOOK, (nbformat.writes(notebook) + "\n").encode())


def stored_run(notebook):
    """Return the record of the notebook's own run if it is of the present code."""
    record, current = find_record(notebook), settings_of("assignment")
    code = notebook.metadata.get("code9", {}).get("fingerprint")
    whole = record and code == fingerprint() and record["settings"] == current
    return record if whole else None


def outputs_of(notebook, identifier):
    """Return the outputs of the notebook's cell with this id."""
    return next(c for c in notebook.cells if c.id == identifier).outputs


def not_yet(tool="benchmark.py", done="trained"):
    """Return what stands in the place of something that is not recorded."""
    return f"Not {done} by the present code yet: run tests/tools/{tool}."


def table(head, rows):
    """Return a Markdown table; a head that begins with > is set to the right."""
    lines = [[name.lstrip(">") for name in head]]
    lines += [["---:" if name.startswith(">") else "---" for name in head], *rows]
    lines = [f"|{'|'.join(map(str, line))}|" for line in lines]
    return "\n".join(lines) if rows else not_yet()


def summarize(records):
    """Return what the accuracies of records, given as shares, come to."""
    accuracies = [record["accuracy"] for record in records]
    return {
        "n": len(accuracies),
        "mean": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "worst": min(accuracies),
        "reached": sum(accuracy >= REQUIRED for accuracy in accuracies),
    }


def spread(summary, digits=2):
    """Return mean and deviation in per cent, as text."""
    text = f"{100 * summary['mean']:.{digits}f}"
    if summary["deviation"] is None:
        return text
    return f"{text} ± {100 * summary['deviation']:.{digits}f}"


def interval(values):
    """Return mean, half its 95 % interval (Student's t), and if that excludes zero."""
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, float("nan"), False
    error = float(stats.sem(values) * stats.t.ppf(0.975, count - 1))
    return mean, error, count > 2 and abs(mean) > error  # two can be equal by chance


def effect(values, digits):
    """Return the mean of differences ± half its 95 % interval, bold if not zero."""
    mean, error, told = interval(values)
    text = f"{mean:+.{digits}f} ± {error:.{digits}f}".removesuffix(" ± nan")
    return f"**{text}**" if told else text


def found(runs, records):
    """Return the stored records of the runs, as far as there are some."""
    return [record for run in runs if (record := find(run, records))]


def by_recipe(seeds, records):
    """Return the records on the test images with these seeds, by the runs' name."""
    groups = collections.defaultdict(list)
    for record in found(benchmark.seed_runs(seeds), records):
        groups[record["name"]].append(record)
    return groups


def differences(records):
    """Return what each change did on the hold-out, and the records without a change.

    That is, by name, a pair of lists: the changes of accuracy in points and of the
    loss, with one value for each seed and fold that the unchanged recipe was trained
    with, too. Losses are compared only where both learned the same labels. The plain
    baseline comes first, then the worst.
    """
    base, changes = {}, {}
    for run in benchmark.ablation_runs():
        record, place = find(run, records), (run.seed, run.fold)
        if record and run.name == "as it is":  # the first run of each place
            base[place] = record
        elif record and place in base:
            points, losses = changes.setdefault(run.name, ([], []))
            both = record, base[place]
            points.append(100 * (both[0]["accuracy"] - both[1]["accuracy"]))
            if len({r["settings"]["label_smoothing"] for r in both}) == 1:
                losses.append(both[0]["loss"] - both[1]["loss"])
    order = sorted(changes, key=lambda n: (n != PLAIN, np.mean(changes[n][0])))
    return {name: changes[name] for name in order}, list(base.values())


def choices_table(records):
    """Return the table of what each choice brings."""
    (changes, base), rows = differences(records), []
    for name, (points, losses) in changes.items():
        loss = effect(losses, 4) if losses else ""
        rows.append((name, effect(points, 3), loss, len(points)))
    text = table(("one change of `assignment`", ">points", ">loss", ">n"), rows)
    if rows:
        s = summarize(base)
        text += f"\n\nUnchanged: {spread(s)} % of the images held out (n = {s['n']})."
    return text


@functools.cache
def network():
    """Return the network of the recipe "assignment", not trained."""
    cells = run_cells("model", skip=("load", "split", "digits"))
    return cells["build_model"](cells["settings"])


def rules_table(record, records):
    """Return the assignment's rules, and how the stored run and the seeds meet them."""
    model, reached = network(), []
    dense = sum("Dense" in type(layer).__name__ for layer in model.layers)
    biases = sum(len(v.shape) == 1 for v in model.trainable_variables)
    if record:
        reached.append(f"**{100 * record['accuracy']:.2f} %** in the stored run")
    if group := by_recipe(SEEDS, records).get("assignment"):
        s = summarize(group)
        reached.append(f"**{spread(s)} %** over {s['n']} seed{'s' * (s['n'] > 1)}")
    rows = [
        ("test accuracy", "≥ 99.4 %", "; ".join(reached) or not_yet()),
        ("parameters", "< 15,000", f"{model.count_params():,}"),
        ("epochs", "≤ 20", settings_of("assignment")["epochs"]),
        ("dense layers", "none", dense or "none"),
        ("trained biases, batch norm's beta included", "none", biases or "none"),
    ]
    return table(("rule", "required", "reached"), rows)


def log(record):
    """Return the log of the stored run's epochs."""
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    lines = [f"epoch {keys[0]:>6} {keys[1]} {keys[2]} {keys[3]}"]
    columns = (record["history"][key] for key in keys)
    for epoch, (a, b, c, d) in enumerate(zip(*columns, strict=True), 1):
        lines.append(f"{epoch:5} {a:6.4f} {b:8.2%} {c:8.4f} {d:12.2%}")
    return "\n".join(["```text", *lines, "```"])


def printed(notebook, identifier):
    """Return what the cell printed, as a block of text."""
    outputs = outputs_of(notebook, identifier)
    return f"```text\n{''.join(o.text for o in outputs if 'text' in o).rstrip()}\n```"


def net_table():
    """Return the table of the stages of the recipe "assignment"."""
    stages, model = [], network()
    for layer in model.layers:
        name = f"`{type(layer).__name__}`"
        if "Conv" in name:
            stages.append(([], []))
            name += f" {layer.kernel_size[0]}x{layer.kernel_size[1]}"
        if "Activation" in name:
            name = {"silu": "SiLU"}.get(layer.activation.__name__, name)
        stages[-1][0].append(name)
        stages[-1][1].append(layer)
    rows = [
        (", ".join(names), "x".join(map(str, layers[-1].output.shape[1:])),
         f"{sum(layer.count_params() for layer in layers):,}")
        for names, layers in stages
    ]  # fmt: skip
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    total = f"**{model.count_params():,}**"
    rows.append((f"all, {trained:,} of them trained", "", total))
    return table(("stage", "output", ">parameters"), rows)


def seeds_table(records):
    """Return the table of our recipes over seeds."""
    rows = []
    for name in (run.name for run in benchmark.seed_runs(SEEDS[:1])):
        for seeds, which in ((SEEDS, ""), (FRESH_SEEDS, ", fresh seeds")):
            if group := by_recipe(seeds, records).get(name):
                s, first = summarize(group), group[0]
                mean, worst = spread(s, 3), f"{100 * s['worst']:.2f}"
                size, epochs = f"{first['parameters']:,}", first["settings"]["epochs"]
                reached = f"{s['reached']} of {s['n']}"
                recipe = first["settings"]["recipe"]
                label = f"`{recipe}`{name.removeprefix(recipe)}{which}"
                rows.append((label, size, epochs, s["n"], mean, worst, reached))
    head = ("recipe", ">parameters", ">epochs", ">n", ">mean, %", ">worst", ">≥ 99.40")
    return table(head, rows)


def frontier(records):
    """Return recipe, parameters, filters and summary of each width, by size."""
    groups, runs = collections.defaultdict(list), benchmark.frontier_runs()
    for recipe in benchmark.FRONTIER:  # as it is, it is one of them
        runs += [benchmark.Run(recipe, recipe, s) for s in benchmark.FEW_SEEDS]
    for record in found(runs, records):
        settings = record["settings"]
        key = settings["recipe"], record["parameters"], str(settings["filters"])
        groups[key].append(record)
    return [(*key, summarize(group)) for key, group in sorted(groups.items())]


def frontier_table(records):
    """Return the table of recipes at other widths."""
    rows, enough = [], []
    for recipe, size, filters, s in frontier(records):
        worst = f"{100 * s['worst']:.2f}"
        row = f"`{recipe}`", f"{size:,}", f"`{filters}`", s["n"], spread(s), worst
        rows.append(row)
        enough += [size] if s["mean"] >= REQUIRED else []
    text = f"\n\nThe smallest with a mean of {100 * REQUIRED:.2f} % or more has"
    text = f"{text} {min(enough):,} parameters." if enough else ""
    head = ("recipe", ">parameters", "filters", ">n", ">mean, %", ">worst")
    return table(head, rows) + text


def public_networks():
    """Return what others published, as their own logs show it, with numbers as such."""
    rows = tab_separated("public")
    for row in rows:
        row |= {key: int(row[key]) for key in ("parameters", "epochs", "runs")}
        row |= {key: float(row[key]) for key in ("accuracy", "deviation")}
    return rows


def public_table():
    """Return the table of what others published on GitHub."""
    rows = []
    for row in public_networks():
        shown = f"{row['accuracy']:.2f}"
        if row["runs"] > 1:
            shown += f" ± {row['deviation']:.2f}"
        link = f"[{row['who']}](https://github.com/{row['who']})"
        link += row["network"] and f", {row['network']}"
        size = f"{row['parameters']:,}{'T' * (row['counted'] == 'trainable')}"
        rows.append((link, size, f"{row['epochs']:,}", shown, row["runs"]))
    head = ("who", ">parameters", ">epochs", ">accuracy, %", ">runs")
    return f"{table(head, rows)}\n\n{SCAN}"


def stored_times():
    """Return what speed.py stored if it is of the present code, or None."""
    stored = json.loads(SPEED.read_text("utf-8")) if SPEED.exists() else {}
    return stored if stored.get("fingerprint") == fingerprint() else None


def peers_table(records):
    """Return the times of the recipes and of the public nets that speed.py stored."""
    if not (stored := stored_times()):
        return not_yet("speed.py", "measured")
    groups, rows = by_recipe(SEEDS, records), []
    for name, t in stored["timed"].items():
        theirs = [{"accuracy": accuracy} for accuracy in t.get("accuracies", ())]
        ends = theirs or groups[name]
        reached = f"{spread(summarize(ends), 3)} (n = {len(ends)})" if ends else ""
        seconds = f"{t['seconds']:.1f}", f"{t['seconds'] / t['epochs']:.1f}"
        rows.append((name, t["epochs"], *seconds, reached, t["settings"]))
    head = ("training", ">epochs", ">seconds", ">an epoch", ">ends at, %", "settings")
    about = f"Medians of {stored['repeats']} trainings; load average at the start"
    about += f" {stored['load']:.1f}. {stored['machine']}."
    return f"{table(head, rows)}\n\n{about}"


def fastest(records):
    """Return how many times as long the public nets take as our fastest training.

    That is the fastest whose mean is as required, in both groups of seeds.
    """
    if not (stored := stored_times()):
        return not_yet("speed.py", "measured")
    timed, good = stored["timed"], {}
    for name in timed:
        groups = [by_recipe(seeds, records)[name] for seeds in (SEEDS, FRESH_SEEDS)]
        if all(groups) and min(summarize(g)["mean"] for g in groups) >= REQUIRED:
            good[name] = timed[name]["seconds"]
    if not good:
        return "None of ours is accurate enough on average."
    name = min(good, key=good.get)
    longer = [
        f"{other} takes {t['seconds'] / good[name]:.1f} times as long"
        for other, t in timed.items()
        if "accuracies" in t  # not one of ours
    ]
    text = (
        f"Our fastest training whose mean is {100 * REQUIRED:.2f} % or more is {name}:"
    )
    text += f" {good[name]:.0f} s. On the same machine, {', '.join(longer)}."
    return textwrap.fill(text, 94)


def tab_separated(name):
    """Return the rows of a file of tab-separated values in tests/records, as dicts."""
    with (RECORDS / f"{name}.tsv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def photographs_table():
    """Return the table of how well photographs are read."""
    rows = [row.values() for row in tab_separated("photographs")]
    head = tab_separated("photographs")[0]
    return table([name if name == "picture" else f">{name}" for name in head], rows)


def generated_parts(notebook, records):
    """Return the generated parts of all pages by name."""
    record, to_run = stored_run(notebook), not_yet("report.py --run", "run")
    return {
        "rules": rules_table(record, records),
        "log": log(record) if record else to_run,
        "evaluate": printed(notebook, "evaluate") if record else to_run,
        "net": net_table(),
        "choices": choices_table(records),
        "seeds": seeds_table(records),
        "frontier": frontier_table(records),
        "public": public_table(),
        "peers": peers_table(records),
        "fastest": fastest(records),
        "photographs": photographs_table(),
    }


def fill(text, parts):
    """Return the text with each generated part that it names in place."""
    block = r"(?s)(<!-- generated: ([^>]+) -->)\n.*?(<!-- end: \2 -->)"
    return re.sub(block, lambda m: f"{m[1]}\n{parts[m[2]]}\n{m[3]}", text)


def fill_notebook(notebook, parts):
    """Fill the generated parts of the notebook's text cells in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, parts)
    return notebook


def finding(groups):
    """Return what the figure of the comparison shows, in words."""
    small = [row for row in public_networks() if row["parameters"] < 15_000]
    if not (group := groups.get("assignment")):
        return f"{len(small)} public networks have fewer than 15,000 parameters"
    mean = round(100 * summarize(group)["mean"], 2)
    above = sum(row["accuracy"] >= mean for row in small)
    if above:
        return f"{above} of {len(small)} small public networks end at our mean or above"
    return f"Our mean is above the {len(small)} small public networks shown"


def plot_comparison(records):
    """Return a PNG of accuracy over parameters: ours and the public ones."""
    plt.rcdefaults()  # whatever cells of the notebook were run before
    figure, axis = plt.subplots(figsize=(8, 5.6), layout="constrained")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    spot = {"textcoords": "offset points", "fontsize": 10, "bbox": box}
    dots = []
    for row in public_networks():
        name, marker = row["who"].split("/")[0], "+" if row["runs"] == 1 else "x"
        numbers = row["parameters"], row["accuracy"], row["deviation"] or None
        dots.append((name, *numbers, marker, "gray"))
    groups = by_recipe(SEEDS, records)
    for name, group in groups.items():
        s = summarize(group)
        mean, deviation = 100 * s["mean"], s["deviation"] and 100 * s["deviation"]
        size = group[0]["parameters"]
        dots.append((name, size, mean, deviation, MARKERS.get(name, "o"), "tab:blue"))
    for name, size, mean, deviation, marker, color in dots:
        axis.errorbar(size, mean, deviation, fmt=marker, color=color, capsize=3)
        if name in LABELS:
            *offset, side = LABELS[name]
            where = spot | {"xytext": offset, "ha": side}
            where["weight"] = "bold" if name in groups else "normal"
            where["color"] = "dimgray" if color == "gray" else color
            axis.annotate(name, (size, mean), **where)
    keys = [("o", "ours, mean of seeds ± deviation", "tab:blue")]
    keys += [("+", "public, single run", "gray"), ("x", "public, mean of runs", "gray")]
    for marker, label, color in keys:
        axis.plot([], [], marker, color=color, label=label)
    for recipe, style in LINES.items():
        points = [point for point in frontier(records) if point[0] == recipe]
        sizes = [size for _, size, _, _ in points]
        means = [100 * s["mean"] for *_, s in points]
        look = {"color": "tab:blue", "alpha": 0.5, "zorder": 1}
        axis.plot(sizes, means, style, label=f"ours, {recipe} at other widths", **look)
    axis.axhline(100 * REQUIRED, linestyle="--", color="black", linewidth=1)
    where = spot | {"xytext": (0, 4), "ha": "right"}
    axis.annotate("required: 99.4 %", (1.8e6, 100 * REQUIRED), **where)
    axis.axvline(15_000, linestyle=":", color="black", linewidth=1)
    axis.annotate("limit: 15,000", (15_000, 99.77), xytext=(4, 0), **spot)
    axis.set_ylim(bottom=min(98.5, axis.get_ylim()[0]))  # room for the legend
    axis.legend(loc="lower right", fontsize=10)
    axis.set(xscale="log", xlim=(250, 2e6))
    axis.set_xlabel("parameters (of most public ones, trainable only)", fontsize=11)
    axis.set_ylabel("test accuracy after the last epoch (%)", fontsize=11)
    axis.set_title(finding(groups), fontsize=12)
    return as_png(figure)


def plot_ablation(records):
    """Return a PNG of the changes: a dot for each pair, means, and 95 % intervals."""
    plt.rcdefaults()
    figure, axis = plt.subplots(figsize=(8, 5.6), layout="constrained")
    changes, told = differences(records)[0], 0
    for place, (points, _) in enumerate(changes.values()):
        mean, error, excludes_zero = interval(points)
        told += excludes_zero
        axis.plot(points, [place + 0.3] * len(points), ".", color="gray")
        axis.errorbar(mean, place, xerr=error, fmt="D", color="tab:blue", capsize=4)
    axis.set_yticks(range(len(changes)), [textwrap.fill(name, 36) for name in changes])
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=1)
    meaning = "mean of the pairs with its 95 % interval; dots: pairs of seed and fold"
    axis.set_xlabel(f"change of hold-out accuracy (percentage points)\n{meaning}")
    title = f"{told} of {len(changes)} changes have a 95 % interval that excludes zero"
    axis.set_title(title if changes else not_yet(), fontsize=12)
    return as_png(figure)


def as_png(figure):
    """Return the figure as a PNG that names what drew it, and close the figure."""
    buffer = io.BytesIO()
    drawn_by = {"Software": f"matplotlib {matplotlib.__version__}"}
    figure.savefig(buffer, dpi=110, facecolor="white", metadata=drawn_by)
    plt.close(figure)
    return buffer.getvalue()


def figures(notebook, records):
    """Return the PNGs that the README shows, by file name."""
    drawn = {"comparison.png": plot_comparison(records)}
    drawn["ablation.png"] = plot_ablation(records)
    for cell, name in SHOWN.items() if stored_run(notebook) else ():
        data = outputs_of(notebook, cell)[0]["data"]
        drawn[name] = base64.b64decode(data["image/png"])
    return drawn


def main():
    """Write the generated parts and the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the notebook first")
    if parser.parse_args().run:
        run_and_store()
    notebook, records = read_notebook(), benchmark.read_records()
    parts = generated_parts(notebook, records)
    filled = nbformat.writes(fill_notebook(notebook, parts)) + "\n"
    write_whole(NOTEBOOK, filled.encode())
    for page in PAGES:
        write_whole(page, fill(page.read_text("utf-8"), parts).encode())
    for name, content in figures(notebook, records).items():
        write_whole(IMAGES / name, content)


if __name__ == "__main__":
    main()
