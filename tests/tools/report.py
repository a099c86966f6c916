"""Writes what README, tests/README and notebook show, from the stored records.

The generated parts stand between the markers <!-- generated: NAME --> and
<!-- end: NAME -->, single numbers between <!-- n: NAME --> and <!-- end -->. Nothing in
them is typed by hand but what others published, PUBLIC below, and for how many epochs
two of their nets train, in speed.py. A test fails if they differ from what this program
would write. With --run the notebook is run anew first, and its outputs are stored.
"""

import argparse
import base64
import io
import json
import math
import re
import statistics

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import papermill
from benchmark import (
    ABLATION,
    ABLATION_SEEDS,
    HELD_OUT,
    OTHER_SEEDS,
    SEEDS,
    is_edited_so,
    read_records,
)
from nbclient import NotebookClient
from runner import (
    DATA,
    NOTEBOOK,
    REPOSITORY,
    definitions,
    find_record,
    fingerprint,
    is_current,
    read_notebook,
    run_cell,
    write_whole,
)

ADDRESS = ""  # owner/name on GitHub, once it is known: the README then links to Colab
PAGES = (REPOSITORY / "README.md", REPOSITORY / "tests" / "README.md")
SPEED = REPOSITORY / "tests" / "records" / "speed.json"
IMAGES = REPOSITORY / "images"
STORED_MODEL = DATA.with_name("CODE9.keras")
# Cells of the notebook, and the files that their figures go to.
SHOWN = {"curves": "curves.png", "wrong": "errors.png"}
# What others published on GitHub, as their own logs show it: repository, parameters
# (T: trainable ones only), epochs, accuracy after the last epoch in per cent, its
# deviation and the number of runs, and where its label goes in the figure.
PUBLIC = (
    ("sagarigrandhi/EVA4", 9_994, "T", 15, 99.60, 0, 1, (-7, 5, "right")),
    ("abdksyed/EVA4", 8_464, "T", 15, 99.58, 0, 1, (-7, -8, "right")),
    ("baronrogers5/eip4", 13_050, "", 20, 99.57, 0, 1, (8, -6, "left")),
    ("BirenderPanwar/TSAI_EIP4_Phase1", 12_328, "", 20, 99.54, 0, 1, (8, -10, "left")),
    ("gantir/eip4", 10_708, "", 20, 99.45, 0, 1, (0, 6, "center")),
    ("sudhakarmlal/TSAI-ERA-V1", 6_254, "T", 14, 99.43, 0, 1, (-7, -3, "right")),
    ("ruslangrimov/mnist-minimal-model", 1_936, "", 75, 99.10, 0, 1, (7, -3, "left")),
    ("JoshWarn/Parameter-Efficient-MNIST", 697, "", 2000, 99.03, 0, 1, (7, -3, "left")),
    ("Matuzas77/MNIST-0.17", 1_190_000, "", 20, 99.748, 0.028, 20, (-7, 7, "right")),
    ("tuomaso/train_mnist_fast", 215_194, "", 1, 99.04, 0.066, 30, (8, -4, "left")),
)  # fmt: skip
# Our recipes: marker, and where the label goes.
OURS = {
    "assignment": ("o", (8, 7)),
    "compact": ("s", (8, -30)),
    "quick": ("D", (9, -14)),
}


def run_and_store():
    """Execute the notebook in place, and keep the net of its three looks."""
    notebook = read_notebook()
    unfinished = STORED_MODEL.with_name("unfinished.keras")
    extra = nbformat.v4.new_code_cell(f"averaged.save({str(unfinished)!r})")
    code = fingerprint()
    resources = {"metadata": {"path": str(REPOSITORY)}}
    notebook.cells.append(extra)
    client = NotebookClient(
        notebook, timeout=None, resources=resources, coalesce_streams=True
    )
    client.execute()
    notebook.cells.pop()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # less what TensorFlow's libraries say of the machine
            outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            cell.outputs = outputs
    notebook.metadata.language_info = {"name": "python"}
    if fingerprint() != code:
        unfinished.unlink()
        raise RuntimeError("CODE9.ipynb was changed while it ran: the run is dropped.")
    notebook.metadata["code9"] = {"fingerprint": code}
    unfinished.replace(STORED_MODEL)
    write_whole(NOTEBOOK, (nbformat.writes(notebook) + "\n").encode())


def outputs_of(notebook, identifier):
    """Return the outputs of the notebook's cell with this id."""
    return next(c for c in notebook.cells if c.id == identifier).outputs


def printed(notebook, identifier):
    """Return what the cell printed, as a block of text."""
    text = "".join(o.text for o in outputs_of(notebook, identifier) if "text" in o)
    return f"```text\n{text}```"


def percent(share, digits=2):
    """Return the share as a percentage, without the sign."""
    return f"{100 * share:.{digits}f}"


def table(head, rows):
    """Return a Markdown table; a head that begins with > is set to the right."""
    lines = [" | ".join(name.lstrip(">") for name in head)]
    lines += ["|".join("---:" if name.startswith(">") else "---" for name in head)]
    lines += [" | ".join(str(value) for value in row) for row in rows]
    return "\n".join(f"|{line}|" if "---" in line else f"| {line} |" for line in lines)


def summarize(records):
    """Return what the records' accuracies, as shares, come to."""
    accuracies = [record["accuracy"] for record in records]
    return {
        "n": len(accuracies),
        "mean": statistics.mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "worst": min(accuracies),
        "reached": sum(accuracy >= 0.994 for accuracy in accuracies),
    }


def claimed(records, seeds=SEEDS):
    """Return the current code's records on the test set, by recipe."""
    groups = {name: [] for name in definitions()["RECIPES"]}
    for record in records:
        whole = record["evaluated_on"] == "test" and record["overrides"] == {}
        if whole and record["seed"] in seeds and is_current(record):
            groups[record["name"]].append(record)
    return {name: group for name, group in groups.items() if group}


def held_out(records):
    """Return the current code's records on the hold-out, by name and then by seed."""
    groups = {name: {} for name in HELD_OUT}
    for record in records:
        fits = is_current(record) and is_edited_so(record)
        if fits and record["evaluated_on"] == "holdout":
            groups[record["name"]][record["seed"]] = record
    return groups


def looks(records, measure):
    """Return what one look in place of three does to a measure, a list."""
    return [record[f"one_look_{measure}"] - record[measure] for record in records]


def differences(groups, measure):
    """Return what each change did to a measure on the hold-out, a list for each name.

    The groups are held_out()'s, the measure a key of their records. The differences
    are to the recipe as it is, one for each seed that both were trained with; of losses
    only where both learned the same labels. One look is compared to three of the same
    run. A change of a single seed is left out: nothing says how far it can be trusted.
    """
    base, found = groups["as it is"], {}
    for name in [name for name in ABLATION if name != "as it is"]:
        pairs = [(r, base[seed]) for seed, r in groups[name].items() if seed in base]
        if measure == "loss":
            smoothing = {r["settings"]["label_smoothing"] for p in pairs for r in p}
            pairs = pairs if len(smoothing) == 1 else []
        if len(pairs) > 1:
            found[name] = [
                changed[measure] - as_is[measure] for changed, as_is in pairs
            ]
    if len(base) > 1:
        found["one look instead of three"] = looks(base.values(), measure)
    return found


def changes(groups):
    """Return what each change did to the accuracy on the hold-out, the worst first.

    That is pairs of its name and a list of differences, in percentage points.
    """
    found = {
        name: [100 * value for value in values]
        for name, values in differences(groups, "accuracy").items()
    }
    return sorted(found.items(), key=lambda pair: statistics.mean(pair[1]))


def standard_error(values):
    """Return the standard error of the mean of two values or more."""
    return statistics.stdev(values) / len(values) ** 0.5


def effect(values, digits=3):
    """Return the mean of the differences and its standard error, as text."""
    mean, error = statistics.mean(values), standard_error(values)
    return f"{mean:+.{digits}f} ± {error:.{digits}f}"


def rules_table(record, groups):
    """Return the assignment's rules, and how the stored run and the seeds meet them."""
    seeds = summarize(groups["assignment"])
    reached = f"**{percent(record['accuracy'])} %**; over {seeds['n']} seeds "
    reached += f"**{percent(seeds['mean'])} ± {percent(seeds['deviation'])} %**"
    rows = [
        ("test accuracy", "99.4 %", reached),
        ("parameters", "< 15,000", f"{record['parameters']['total']:,}"),
        ("epochs", "≤ 20", record["settings"]["epochs"]),
        ("dense layers", "none", "none"),
        ("learned biases, offsets", "none", "none"),
    ]
    return table(("rule", "required", "reached"), rows)


def results_table(groups, others):
    """Return the table of our recipes: means over seeds, and of the other seeds."""
    rows = []
    for name, group in groups.items():
        first = group[0]
        for records, which in ((group, "claimed"), (others.get(name, []), "other")):
            if not records:
                continue
            s = summarize(records)
            mean = f"{percent(s['mean'])} ± {percent(s['deviation'])}"
            label = f"**`{name}`**, {first['parameters']['total']:,} parameters,"
            label += f" {counted(first['settings']['epochs'], 'epoch')}"
            rows.append(
                (label if which == "claimed" else f"{s['n']} other seeds",
                 f"**{mean}**" if which == "claimed" else mean,
                 percent(s["worst"]), f"{s['reached']} of {s['n']}",
                 percent(statistics.mean(r["one_look_accuracy"] for r in records)))
            )  # fmt: skip
    return table(("recipe", ">mean, %", ">worst", ">99.4 %", ">one look"), rows)


def counted(number, noun):
    """Return the number and the noun, in the plural unless it is one."""
    return f"{number} {noun}{'s' * (number != 1)}"


def public_table():
    """Return the table of what others published."""
    rows = []
    for who, parameters, kind, epochs, accuracy, deviation, runs, _ in PUBLIC:
        shown = f"{accuracy:.2f}" + (f" ± {deviation:.2f}" if runs > 1 else "")
        link = f"[{who}](https://github.com/{who})"
        rows.append((link, f"{parameters:,}{kind}", epochs, shown, runs))
    return table(("who", ">parameters", ">epochs", ">accuracy, %", ">runs"), rows)


def parameters_table():
    """Return the table of the notebook's parameters, as its cell explains them."""
    rows = [
        (f"`{name}`", p["inferred_type_name"], f"`{p['default']}`", p["help"])
        for name, p in papermill.inspect_notebook(str(NOTEBOOK)).items()
    ]
    return table(("parameter", "type", "default", "what it does"), rows)


def net_table():
    """Return the table of the stages of the recipe "assignment"."""
    cells = dict(definitions())
    run_cell("model", cells)
    stages, model = [], cells["build_model"](cells["Recipe"]())
    for layer in model.layers:
        name = f"`{type(layer).__name__}`"
        if "Conv" in name:
            stages.append(([], []))
            name += f" {layer.kernel_size[0]}x{layer.kernel_size[1]}"
        stages[-1][0].append(name)
        stages[-1][1].append(layer)
    rows = [
        (
            ", ".join(names).replace("`Activation`", "SiLU"),
            "x".join(map(str, layers[-1].output.shape[1:])),
            f"{sum(layer.count_params() for layer in layers):,}",
        )
        for names, layers in stages
    ]
    trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
    total = f"**{model.count_params():,}**, {trainable:,} of them trained"
    rows.append(("all", "", total))
    return table(("stage", "output", ">parameters"), rows)


def settings_table():
    """Return the table of the fields of a recipe, and what each recipe sets."""
    cells = definitions()
    rows = []
    for name, field in cells["Recipe"].model_fields.items():
        values = [cells["Recipe"](**r) for r in cells["RECIPES"].values()]
        shown = [f"{getattr(value, name)}" for value in values]
        rows.append((f"`{name}`", field.description, *shown))
    return table(("setting", "what it is", *cells["RECIPES"]), rows)


def ablation_table(found, losses):
    """Return the table of what each change of the recipe did on the hold-out."""
    rows = [
        (name, effect(values), effect(losses[name], 4) if name in losses else "")
        for name, values in found
    ]
    return table(("one change of `assignment`", ">points", ">loss"), rows)


def peers_table(groups):
    """Return the times of the recipes and of the public nets that speed.py stored."""
    record = json.loads(SPEED.read_text(encoding="utf-8"))
    rows = []
    for name, seconds in record["ours"].items():
        epochs = counted(groups[name][0]["settings"]["epochs"], "epoch")
        reached = percent(summarize(groups[name])["mean"])
        rows.append((f"`{name}`, {epochs}", f"{seconds:.1f}", reached, ""))
    for name, peer in record["peers"].items():
        seconds = peer["epoch"] * peer["epochs"]
        times = f"{seconds / record['ours']['quick']:.0f}"
        label = f"{name}, {counted(peer['epochs'], 'epoch')}"
        reached = percent(statistics.mean(peer["accuracies"]))
        rows.append((label, f"{seconds:.1f}", reached, times))
    head = (record["machine"], ">seconds", ">ends at, %", ">times `quick`")
    return table(head, rows)


def colab_line():
    """Return how to open the notebook in Colab: a link if the address is known."""
    if not ADDRESS:
        return (
            "In [Colab](https://colab.research.google.com), *File → Upload notebook*."
        )
    site = "https://colab.research.google.com"
    badge = f"[![Open in Colab]({site}/assets/colab-badge.svg)]"
    return f"{badge}({site}/github/{ADDRESS}/blob/main/CODE9.ipynb)"


def stored_table(record):
    """Return what the stored run was."""
    low, high = (percent(bound) for bound in record["accuracy_interval"])
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    rows = [
        ("recipe, seed", f"`{record['recipe']}`, {record['seed']}"),
        ("test accuracy after the last epoch", f"{percent(record['accuracy'])} %"),
        ("95 % interval of this one run (Wilson)", f"{low} to {high} %"),
        ("training", f"{record['training_seconds']:.0f} s on {record['device']}"),
        ("versions", versions),
    ]
    return table(("the stored run", ""), rows)


def generated_parts(notebook, records):
    """Return the generated parts of all pages by name, single numbers among them."""
    record, on_holdout = find_record(notebook), held_out(records)
    groups, others = claimed(records), claimed(records, OTHER_SEEDS)
    found, losses = changes(on_holdout), differences(on_holdout, "loss")
    parts = {
        "colab": colab_line(),
        "rules": rules_table(record, groups),
        "results": results_table(groups, others),
        "log": printed(notebook, "fit"),
        "evaluate": printed(notebook, "evaluate"),
        "public": public_table(),
        "parameters": parameters_table(),
        "settings": settings_table(),
        "net": net_table(),
        "ablation": ablation_table(found, losses),
        "peers": peers_table(groups),
        "run": stored_table(record),
    }
    numbers = {name: f"{effect(values)} points" for name, values in found}
    numbers["ablation seeds"] = counted(len(ABLATION_SEEDS), "seed")
    for setting, value in record["settings"].items():
        numbers[setting] = f"{value:g}" if isinstance(value, int | float) else ""
    for name, group in groups.items():
        s = summarize(group)
        numbers[f"{name} mean"] = f"{percent(s['mean'])} %"
        numbers[f"{name} deviation"] = percent(s["deviation"])
        base = on_holdout["as it is" if name == "assignment" else name].values()
        numbers[f"{name} hold-out"] = f"{percent(summarize(base)['mean'])} %"
        points = [100 * value for value in looks(base, "accuracy")]
        numbers[f"{name} one look"] = f"{effect(points)} points"
        numbers[f"{name} one look's loss"] = effect(looks(base, "loss"), 4)
        numbers[f"{name} parameters"] = f"{group[0]['parameters']['total']:,}"
    return parts | numbers


def fill(text, parts):
    """Return the text with each generated part and number that it names in place."""

    def part(match):
        return f"{match[1]}\n{parts[match[2]]}\n{match[3]}"

    def number(match):
        return f"{match[1]}{parts[match[2]]}{match[3]}"

    block = r"(<!-- generated: ([^>]+) -->)\n.*?(<!-- end: \2 -->)"
    text = re.sub(block, part, text, flags=re.DOTALL)
    return re.sub(r"(<!-- n: ([^>]+) -->)[^<]*(<!-- end -->)", number, text)


def fill_notebook(notebook, parts):
    """Fill the generated parts of the notebook's text cells in place."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, parts)
    return notebook


def plot_comparison(groups):
    """Return a PNG of accuracy over parameters: ours and the public ones."""
    plt.rcdefaults()  # whatever cells of the notebook were run before
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    style = {"color": "grey", "linestyle": "", "capsize": 3}
    for who, parameters, _, epochs, accuracy, deviation, runs, place in PUBLIC:
        marker = "+" if runs == 1 else "x"
        axis.errorbar(parameters, accuracy, deviation or None, marker=marker, **style)
        label = f"{who.split('/')[0]}, {counted(epochs, 'epoch')}"
        spot = {"xytext": place[:2], "textcoords": "offset points", "ha": place[2]}
        axis.annotate(label, (parameters, accuracy), color="dimgrey", **spot)
    for name, group in groups.items():
        s, x = summarize(group), group[0]["parameters"]["total"]
        mean, deviation = 100 * s["mean"], 100 * s["deviation"]
        marker, place = OURS[name]
        axis.errorbar(x, mean, deviation, marker=marker, color="tab:blue", capsize=4)
        label = f"{name}, {counted(group[0]['settings']['epochs'], 'epoch')}"
        spot = {"xytext": place, "textcoords": "offset points", "weight": "bold"}
        axis.annotate(label, (x, mean), color="tab:blue", **spot)
    axis.axhline(99.4, linestyle="--", color="black", linewidth=1)
    axis.annotate("the assignment: 99.4 %", (1.8e6, 99.41), ha="right")
    axis.axhline(99.85, linestyle=":", color="black", linewidth=1)
    axis.annotate("99.85 %: 15 test labels are known to be wrong", (600, 99.86))
    axis.set(xscale="log", xlim=(400, 2e6), ylim=(98.95, 99.93))
    axis.set(
        xlabel="parameters (of three others the trained ones only)",
        ylabel="test accuracy after the last epoch (%)",
    )
    axis.set_title("Blue: our means over seeds; x: others' means; +: single runs")
    return as_png(figure)


def plot_ablation(found):
    """Return a PNG of what changes() found: a mean and a dot for each seed."""
    plt.rcdefaults()
    figure, axis = plt.subplots(figsize=(7, 4.8), layout="constrained")
    style = {"fmt": "D", "color": "tab:blue", "capsize": 4}
    beyond = 0
    for place, (_, values) in enumerate(reversed(found)):
        mean, error = statistics.mean(values), 3 * standard_error(values)
        beyond += abs(mean) > error
        axis.errorbar(mean, place, xerr=error, **style)
        axis.plot(values, [place - 0.25] * len(values), "o", color="grey", alpha=0.5)
    axis.set_yticks(range(len(found)), [name for name, _ in reversed(found)])
    axis.axvline(0, color="black", linewidth=1)
    axis.set_xlabel("change of hold-out accuracy (points); bars: 3 standard errors")
    axis.set_title(f"{beyond} of {len(found)} changes are beyond three standard errors")
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
    stored = {
        name: base64.b64decode(outputs_of(notebook, cell)[0]["data"]["image/png"])
        for cell, name in SHOWN.items()
    }
    groups = claimed(records)
    return stored | {
        "comparison.png": plot_comparison(groups),
        "ablation.png": plot_ablation(changes(held_out(records))),
    }


def main():
    """Write the generated parts and the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the notebook first")
    if parser.parse_args().run:
        run_and_store()
    notebook, records = read_notebook(), read_records()
    parts = generated_parts(notebook, records)
    filled = nbformat.writes(fill_notebook(notebook, parts)) + "\n"
    write_whole(NOTEBOOK, filled.encode())
    for page in PAGES:
        write_whole(page, fill(page.read_text("utf-8"), parts).encode())
    for name, content in figures(notebook, records).items():
        write_whole(IMAGES / name, content)


if __name__ == "__main__":
    main()
