"""Writes the tables and figures of README, tests/README and notebook from the records.

What is generated stands between the markers <!-- generated: NAME --> and
<!-- end: NAME -->. Of our own results nothing is typed; public.tsv and SCAN hold what
others published. A test fails if the pages differ from what this program would write.
Records of other code or settings do not count, and what is not measured yet is left
out. With --run the notebook is run first, and its outputs and its network are stored.
"""

import argparse
import base64
import collections
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
from benchmark import FEW_SEEDS, FRESH_SEEDS, SEEDS, Run, ablation_runs, find, seed_runs
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
)
from scipy import stats

PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
RECORDS = REPOSITORY / "tests" / "records"
SPEED = RECORDS / "speed.json"
IMAGES = REPOSITORY / "images"
STORED_MODEL = DATA.with_name("CODE9.keras")
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}  # cells, and their figures
REQUIRED = 99.4
PLAIN = next(name for name in benchmark.ABLATION if name.startswith("plain"))
SCAN = """\
In 141 public repositories, some of them copies, there are 774 runs of 10 to 20 epochs
that start from new weights with fewer than 15,000 parameters. Of these, 231 end at
99.40% or more and one at 99.60%; the median is 99.31%. None is a mean over seeds."""
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
    """Return the record of the notebook's own run if it is of the present code."""
    record, current = find_record(notebook), settings_of("assignment")
    code = notebook.metadata.get("code9", {}).get("fingerprint")
    whole = record and code == fingerprint() and record["settings"] == current
    return record if whole else None


def output_of(notebook, identifier):
    """Return the first output of the notebook's cell with this id, if it has one."""
    cell = next(cell for cell in notebook.cells if cell.id == identifier)
    return next(iter(cell.outputs), {})


def not_yet(tool="benchmark.py", done="trained"):
    """Return what stands in the place of something that is not recorded."""
    return f"Not {done} by the present code yet: run tests/tools/{tool}."


def table(head, rows):
    """Return a Markdown table; a name in the head that begins with > is set right."""
    names = head.split("|")
    rules = ["---:" if name.startswith(">") else "---" for name in names]
    lines = [[name.lstrip(">") for name in names], rules, *rows]
    lines = [f"|{'|'.join(map(str, line))}|" for line in lines]
    return "\n".join(lines) if rows else not_yet()


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
    if not len(values):
        return ""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def interval(values):
    """Return mean, half its 95% interval (Student's t), and if that excludes zero."""
    mean, count, error = np.mean(values), len(values), np.nan
    if count > 1:
        error = stats.sem(values) * stats.t.ppf(0.975, count - 1)
    return mean, error, count > 2 and abs(mean) > error  # two can be equal by chance


def effect(values, digits):
    """Return the mean of differences ± half its 95% interval, bold if not zero."""
    mean, error, told = interval(values)
    text = f"{mean:+.{digits}f} ± {error:.{digits}f}".removesuffix(" ± nan")
    return f"**{text}**" if told else text


def grouped(runs, records, key="name"):
    """Return the stored records of the runs, as far as there are some, by a key."""
    groups = collections.defaultdict(list)
    for run in runs:
        if record := find(run, records):
            groups[record[key]].append(record)
    return groups


def differences(records):
    """Return what each change did on the hold-out: changes of accuracy and of loss.

    That is, by name, a pair of lists, with one value for each seed and fold that the
    unchanged recipe was trained with, too; accuracies are in points. Losses are
    compared only where both learned the same labels. The plain baseline comes first,
    then the worst.
    """
    stored = {(r.name, r.seed, r.fold): find(r, records) for r in ablation_runs()}
    changes = collections.defaultdict(lambda: ([], []))
    for (name, *place), record in stored.items():
        base = stored.get(("as it is", *place))
        if name == "as it is" or not record or not base:
            continue
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
    if rows:
        base = accuracies(grouped(ablation_runs(), records)["as it is"])
        text += f"\n\nUnchanged: {spread(base)}% of the images held out are right"
        text += f" (mean ± standard deviation, n = {len(base)})."
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
        reached.append(f"**{100 * record['accuracy']:.2f}%** in the stored run")
    if group := grouped(seed_runs(SEEDS), records)["assignment"]:
        reached.append(f"**{spread(accuracies(group))}%** over {len(group)} seeds")
    rows = [
        ("test accuracy", "≥ 99.4%", "; ".join(reached) or not_yet()),
        ("parameters", "< 15,000", f"{model.count_params():,}"),
        ("epochs", "≤ 20", settings_of("assignment")["epochs"]),
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
    ten, fresh = (grouped(seed_runs(seeds), records) for seeds in (SEEDS, FRESH_SEEDS))
    rows = []
    for name, group in ten.items():
        settings, size = group[0]["settings"], f"{group[0]['parameters']:,}"
        recipe, row = settings["recipe"], [settings["epochs"]]
        for values in map(accuracies, (group, fresh[name])):
            worst = f", worst {min(values):.2f}" if len(values) else ""
            row += [len(values), f"{spread(values, 3)}{worst}"]
        rows.append((f"`{recipe}`{name.removeprefix(recipe)}", size, *row))
    head = "recipe|>parameters|>epochs|>n|>accuracy, %|>fresh n|>accuracy, %"
    return table(head, rows)


def frontier(recipe, records):
    """Return the records of the recipe at each width, by size."""
    runs = [run for run in benchmark.frontier_runs() if run.recipe == recipe]
    runs += [Run(recipe, recipe, seed) for seed in FEW_SEEDS]  # as it is
    return dict(sorted(grouped(runs, records, "parameters").items()))


def frontier_table(records):
    """Return the table of recipes at other widths."""
    rows = []
    for recipe in benchmark.FRONTIER:
        for size, group in frontier(recipe, records).items():
            filters, values = group[0]["settings"]["filters"], accuracies(group)
            measured = len(values), spread(values), f"{min(values):.2f}"
            rows.append((f"`{recipe}`", f"{size:,}", f"`{filters}`", *measured))
    return table("recipe|>parameters|filters|>n|>mean, %|>worst", rows)


def smallest(records):
    """Return how small a network is enough on average."""
    sizes = [
        size
        for recipe in benchmark.FRONTIER
        for size, group in frontier(recipe, records).items()
        if accuracies(group).mean() >= REQUIRED
    ]
    text = f"Our smallest network with a mean of {REQUIRED:.2f}% or more over"
    text += f" {len(FEW_SEEDS)} seeds has {min(sizes, default=0):,} parameters."
    return text if sizes else not_yet()


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
    head = "who|>parameters|>epochs|>accuracy, %|>runs"
    return f"{table(head, rows)}\n\n{SCAN}"


def stored_times():
    """Return what speed.py stored if it is of the present code, or None."""
    stored = json.loads(SPEED.read_text("utf-8")) if SPEED.exists() else {}
    return stored if stored.get("fingerprint") == fingerprint() else None


def peers_table(times, records):
    """Return the table of the stored times of the recipes and of the public nets."""
    groups, rows = grouped(seed_runs(SEEDS), records), []
    for name, t in times["timed"].items():
        theirs = [{"accuracy": accuracy} for accuracy in t.get("accuracies", ())]
        values = accuracies(theirs or groups[name])
        reached = f"{spread(values, 3)} (n = {len(values)})" if len(values) else ""
        seconds = f"{t['seconds']:.1f}", f"{t['seconds'] / t['epochs']:.1f}"
        rows.append((name, t["epochs"], *seconds, reached, t["settings"]))
    text = table("training|>epochs|>seconds|>an epoch|>ends at, %|settings", rows)
    text += f"\n\nMedians of {times['repeats']} trainings; load average at the start"
    return f"{text} {times['load']:.1f}. {times['machine']}."


def fastest(times, records):
    """Return how many times as long the public nets take as our fastest training.

    That is the fastest whose mean is as required, in both groups of seeds.
    """
    timed, good = times["timed"], {}
    for name in timed:
        groups = [grouped(seed_runs(s), records)[name] for s in (SEEDS, FRESH_SEEDS)]
        if all(groups) and min(accuracies(g).mean() for g in groups) >= REQUIRED:
            good[name] = timed[name]["seconds"]
    if not good:
        return "None of ours is accurate enough on average."
    name = min(good, key=good.get)
    text = f"Our fastest training whose mean is {REQUIRED:.2f}% or more is {name}:"
    text += f" {good[name]:.0f} s. On the same machine, "
    text += " and ".join(
        f"{other} takes {t['seconds'] / good[name]:.1f} times as long"
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
    record, to_run = stored_run(notebook), not_yet("report.py --run", "run")
    printed = output_of(notebook, "evaluate").get("text")
    times, to_time = stored_times(), not_yet("speed.py", "measured")
    quickest = fastest(times, records) if times else to_time
    return {
        "rules": rules_table(record, records),
        "log": log(record["history"]) if record else to_run,
        "evaluate": f"```text\n{printed}```" if record else to_run,
        "net": net_table(),
        "choices": choices_table(records),
        "seeds": seeds_table(records),
        "frontier": frontier_table(records),
        "public": public_table(),
        "peers": peers_table(times, records) if times else to_time,
        "findings": f"{smallest(records)}\n\n{quickest}",
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
        dots.append((name, *numbers, marker, "gray", {"color": "dimgray"}))
    groups, ours = grouped(seed_runs(SEEDS), records), {"color": "tab:blue"}
    for name, group in groups.items():
        values, marker = accuracies(group), MARKERS.get(name, "o")
        deviation = values.std(ddof=1) if len(values) > 1 else None
        numbers = group[0]["parameters"], values.mean(), deviation
        dots.append((name, *numbers, marker, "tab:blue", ours | {"weight": "bold"}))
    for name, size, mean, deviation, marker, color, style in dots:
        axis.errorbar(size, mean, deviation, fmt=marker, color=color, capsize=3)
        if name in LABELS:
            *offset, side = LABELS[name]
            axis.annotate(name, (size, mean), xytext=offset, ha=side, **style, **spot)
    axis.plot([], [], "o", label="ours, mean of seeds ± deviation", **ours)
    axis.plot([], [], "+", label="public, single run", color="gray")
    axis.plot([], [], "x", label="public, mean of runs", color="gray")
    for recipe, style in LINES.items():
        widths = frontier(recipe, records)
        means = [accuracies(group).mean() for group in widths.values()]
        look = ours | {"label": f"ours, {recipe} at other widths", "alpha": 0.5}
        axis.plot(list(widths), means, style, zorder=1, **look)
    axis.axhline(REQUIRED, linestyle="--", color="black", linewidth=1)
    here = (1.8e6, REQUIRED)
    axis.annotate("required: 99.4%", here, xytext=(0, 4), ha="right", **spot)
    axis.axvline(15_000, linestyle=":", color="black", linewidth=1)
    axis.annotate("limit: 15,000", (15_000, 99.77), xytext=(4, 0), **spot)
    axis.set_ylim(bottom=min(98.5, axis.get_ylim()[0]))  # room for the legend
    axis.legend(loc="lower right", fontsize=10)
    axis.set(xscale="log", xlim=(250, 2e6))
    axis.set_xlabel("parameters (of most public ones, trainable only)", fontsize=11)
    axis.set_ylabel("test accuracy (%)", fontsize=11)
    small = public["accuracy"][public["parameters"] < 15_000]
    title = f"{len(small)} public networks have fewer than 15,000 parameters"
    if group := groups["assignment"]:
        above = sum(small >= accuracies(group).mean().round(2))
        title = (
            f"{above} of {len(small)} small public networks end at our mean or above"
        )
        if not above:
            title = f"Our mean is above the {len(small)} small public networks shown"
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
    axis.set_title(title if changes else not_yet(), fontsize=12)


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
    for cell, name in SHOWN.items() if stored_run(notebook) else ():
        data = output_of(notebook, cell)["data"]
        images[name] = base64.b64decode(data["image/png"])
    return images


def main():
    """Write the generated parts and the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the notebook first")
    if parser.parse_args().run:
        run_and_store()
    notebook, records = read_notebook(), benchmark.read_records()
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
