"""The sections of the page, in the order in which a data set is understood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.report.inspection import figures as figures_objects
from detseg.report.inspection import figures as figures_pictures
from detseg.report.inspection.close_ups import CloseUps, data_url
from detseg.report.inspection.figures import Report, are_classes, groups_of, has_groups, label_of
from detseg.report.inspection.page import figure, page, pictures, section, table, text, tiles

# Pictures of each kind of problem, and examples of groups.
_SHOWN, _EXAMPLES = 6, 6


def whole_page(report: Report, dataset: CocoDataset, config: str) -> str:
    """Return the page. dataset: for pictures. config: the suggested configuration as text."""
    drawing = CloseUps(dataset)
    names = ", ".join(file["name"] for file in report["files"])
    parts = [
        f"<h1>What is in this data</h1><p class='faint'>{escape(names)}</p>",
        _navigation(),
        _overview(report),
        _images(report, drawing),
    ]
    if report["objects"]["count"]:
        parts += [_sizes(report), _contacts(report)]
    parts += [_pictures(report), _problems(report, drawing), _suggestions(report, config)]
    parts.append(text(f"detseg {report['detseg']}; all numbers are in report.json beside this page.", "faint"))
    return page(f"{names}: data report", parts)


def _navigation() -> str:
    names = ("images", "sizes", "contacts", "pictures", "problems", "suggestions")
    return "<nav>" + "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name in names) + "</nav>"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as people read it, a dash where there is none."""
    if value is None:
        return "-"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def _overview(report: Report) -> str:
    objects, images = report["objects"], report["images"]
    counts = [row["objects"] for row in images["rows"]]
    wrong = report["problems"]
    values = [
        (number(images["count"]), "images"),
        (number(objects["count"]), "objects"),
        (f"{min(counts)} to {max(counts)}", f"objects an image, {np.median(counts):.0f} in the median"),
    ]
    if objects["diameter"]:
        values.append((f"{objects['diameter']['median']:.0f} px", "median diameter of an object"))
        if objects["diameter_um"]:
            values.append((f"{number(objects['diameter_um']['median'])} µm", "the same in micrometres"))
        values.append((share(objects["touching"]), "objects that touch or overlap others"))
    repairs = sum(one["objects"] for name, one in wrong["masks"].items() if one["remedy"] == "detseg repair")
    values.append((number(repairs), "findings that repair would mend"))
    if len(report["files"]) > 1:
        values.append((number(wrong["similar"]["leaks"]), "leaks between the files"))
    notes = []
    if wrong["missing"]:
        notes.append(text(f"{len(wrong['missing'])} image files are missing; the report goes on without them.", "warn"))
    if wrong["unreadable"]:
        notes.append(text(f"{len(wrong['unreadable'])} images cannot be read or have another size.", "warn"))
    if wrong["file_count"]:
        notes.append(text(f"{wrong['file_count']} entries of the files are bad and were left out.", "warn"))
    return tiles(values) + "".join(notes)


def _images(report: Report, drawing: CloseUps) -> str:
    images = report["images"]
    sizes = [f"{row['height']} x {row['width']} ({row['images']})" for row in images["sizes"]]
    more = f" and {len(sizes) - 8} other sizes" if len(sizes) > 8 else ""
    facts = [f"Height x width in pixels, with the number of images: {', '.join(sizes[:8])}{more}."]
    if images["empty"]:
        facts.append(f"{images['empty']} images have no object.")
    if images["crowd_regions"]:
        facts.append(f"{images['crowd_regions']} regions are to be ignored (iscrowd).")
    size = images["pixel_size"]
    if size:
        known = "" if size["count"] == images["count"] else f" (known of {size['count']} images)"
        same = number(size["min"]) if size["min"] == size["max"] else f"{number(size['min'])} to {number(size['max'])}"
        facts.append(f"Pixels are {same} micrometres wide{known}.")
    else:
        facts.append("The size of a pixel in micrometres is not known.")
    files = ""
    if len(report["files"]) > 1:
        rows = [[row["name"], number(row["images"]), number(row["objects"])] for row in report["files"]]
        files = table(["file", "images", "objects"], rows, numbers=(1, 2))
    return section(
        "images",
        "Images and objects",
        text(" ".join(facts)),
        files,
        figure(figures_objects.draw_counts(report)) if has_groups(report) or len(report["classes"]) > 1 else "",
        figure(figures_objects.draw_objects_per_image(report), "One dot an image, a bar at the median."),
        _examples(report, drawing),
    )


def _examples(report: Report, drawing: CloseUps) -> str:
    """Show the image of each group whose number of objects is the group's median."""
    rows = report["images"]["rows"]
    items = []
    for group in groups_of(report)[:_EXAMPLES]:
        own = [index for index, row in enumerate(rows) if row["group"] == group and "median" in row]
        own.sort(key=lambda index: (rows[index]["objects"], index))
        chosen = [own[len(own) // 2]] if has_groups(report) else own[:: max(len(own) // 3, 1)][:3]
        for index in chosen if own else []:
            for with_masks in (False, True):
                picture = drawing.example(index, with_masks=with_masks)
                if picture is not None:
                    name = f"{label_of(group)}: " if has_groups(report) else ""
                    note = f"{rows[index]['objects']} objects" if with_masks else ""
                    items.append((data_url(picture), f"{name}{_short(rows[index]['file_name'])}", note))
    return "<h3>Examples</h3>" + pictures(items, wide=True) if items else ""


def _sizes(report: Report) -> str:
    rows = []
    kinds = [("all", report["objects"])]
    if len(report["classes"]) > 1:
        kinds += [(name, report["objects"]["classes"][name]) for name in report["classes"]]
    if has_groups(report) and not are_classes(report):
        kinds += [(f"{report['group_field']} {name}", report["objects"]["groups"][name]) for name in groups_of(report)]
    in_um = bool(report["objects"]["diameter_um"])
    for name, one in kinds:
        if one["diameter"]:
            row = [name, number(one["objects"]), *(number(one["diameter"][q]) for q in ("q05", "median", "q95", "max"))]
            um = one["diameter_um"]
            row += [number(um["median"]) if um else "-"] if in_um else []
            rows.append([*row, number(one["elongation"]["median"]), share(one["at_border"])])
    head = ["", "objects", "5 % below", "median", "5 % above", "largest", *(["median, µm"] if in_um else [])]
    head += ["length by width", "at the border"]
    return section(
        "sizes",
        "Sizes and shapes",
        figure(figures_objects.draw_sizes(report)),
        table(head, rows, numbers=range(1, len(head))),
        figure(figures_objects.draw_shapes(report)),
    )


def _contacts(report: Report) -> str:
    pairs, objects = report["objects"]["pairs"], report["objects"]
    words = (
        f"{pairs['overlapping']:,} pairs of objects overlap, {pairs['touching']:,} touch without (by a side or a "
        f"corner), and {pairs['near']:,} more have at most two pixels between them. {share(objects['shared'])} of an "
        "object's outline lies on another one in the mean."
    )
    return section("contacts", "Density and contacts", text(words), figure(figures_objects.draw_contacts(report)))


def _pictures(report: Report) -> str:
    numbers = report["pictures"]
    if not numbers["read"]:
        return section("pictures", "Intensities and focus", text("No picture could be read.", "warn"))
    kinds = ", ".join(f"{count} {name}" for name, count in numbers["dtypes"].items())
    channels = ", ".join(f"{count} with {name}" for name, count in numbers["channels"].items())
    words = (
        f"Pictures by kind of number: {kinds}; by channels: {channels}. {numbers['coloured']} are coloured, "
        f"{numbers['bright_ground']} have a bright ground."
    )
    sample = ""
    if numbers["chosen"] < numbers["there"]:
        sample = text(
            f"This section, look-alikes and broken files rest on a sample of {numbers['chosen']:,} of "
            f"{numbers['there']:,} pictures (the groups as equally as can be); --pictures 0 reads all.",
            "warn",
        )
    caption = (
        "Focus is measured after each picture's percentiles 0.5 and 99.5 became 0 and 255; noise raises it as detail "
        "does, so that only pictures of one kind compare."
    )
    return section(
        "pictures",
        "Intensities and focus",
        text(words),
        sample,
        figure(figures_pictures.draw_intensities(report)),
        figure(figures_pictures.draw_focus(report), caption),
        _picture_table(report),
    )


def _picture_table(report: Report) -> str:
    rows = []
    for group in groups_of(report):
        one = report["pictures"]["by_group"].get(group, {})
        if one.get("median"):
            low, median, high, focus = (one[name]["median"] for name in ("low", "median", "high", "focus"))
            contrast = one["contrast"]["median"] if one["contrast"] else None
            rows.append([label_of(group), *map(number, (low, median, high, focus)), share_signed(contrast)])
    head = ["medians of pictures", "darkest", "median", "brightest", "focus", "contrast"]
    return table(head, rows, numbers=range(1, 6))


def share_signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.0f} %"


def _problems(report: Report, drawing: CloseUps) -> str:
    found = report["problems"]
    parts = []
    if found["masks"]:
        parts += [figure(figures_pictures.draw_problems(report)), _mask_table(found["masks"])]
    if found["masks"]:
        parts.append(
            text("In the pictures the object is yellow, others are blue, the pixels in question red.", "faint")
        )
    parts += [_mask_pictures(one, report, drawing) for one in found["masks"].values()]
    parts += [_bad_pictures(one, report, drawing) for one in found["pictures"].values()]
    if found["one_class_hint"]:
        parts.append(text(found["one_class_hint"][0].upper() + found["one_class_hint"][1:] + "."))
    parts += [_similar(report, drawing), _lists(found)]
    if not any(parts):
        parts = [text("Nothing was found.")]
    return section("problems", "Problems", *parts)


def _mask_table(masks: Mapping[str, Any]) -> str:
    rows = [
        [one["title"], number(one["objects"]), number(one["images"]), number(one["pixels"]), one["remedy"]]
        for one in masks.values()
    ]
    return table(["found", "masks", "images", "pixels", "what mends it"], rows, numbers=(1, 2, 3))


def _mask_pictures(one: Mapping[str, Any], report: Report, drawing: CloseUps) -> str:
    items = []
    for worst in one["worst"][:_SHOWN]:
        picture = drawing.of_object(worst["image"], worst["number"], worst.get("defect"))
        if picture is not None:
            name = report["images"]["rows"][worst["image"]]["file_name"]
            items.append((data_url(picture), _short(name), worst["note"]))
    title = one["title"][0].upper() + one["title"][1:]
    return f"<h3>{escape(title)}</h3>" + pictures(items) if items else ""


def _bad_pictures(one: Mapping[str, Any], report: Report, drawing: CloseUps) -> str:
    items = []
    for worst in one["worst"][:_SHOWN]:
        picture = drawing.example(worst["image"], with_masks=False)
        if picture is not None:
            name = report["images"]["rows"][worst["image"]]["file_name"]
            items.append((data_url(picture), _short(name), worst["note"]))
    title = f"{one['title'][0].upper()}{one['title'][1:]} ({one['images']})"
    return f"<h3>{escape(title)}</h3>" + pictures(items)


def _similar(report: Report, drawing: CloseUps) -> str:
    found, rows = report["problems"]["similar"], report["images"]["rows"]
    if not found["pairs"]:
        return ""
    items = []
    for pair in found["worst"][:_SHOWN]:
        for index in (pair["first"], pair["second"]):
            picture = drawing.example(index, with_masks=False)
            if picture is not None:
                file = report["files"][rows[index]["file"]]["name"] if pair["leak"] else ""
                how = (
                    f"{pair['similarity']:.3f}{', turned' if pair['turned'] else ''}{', leak: ' if file else ''}{file}"
                )
                items.append((data_url(picture), _short(rows[index]["file_name"]), how))
    words = (
        f"{found['images']:,} images are nearly the same as another one (correlation of small copies): "
        f"{found['pairs']:,} pairs, {found['leaks']:,} of them in different files, where they leak. detseg split keeps "
        "them together."
    )
    return (
        "<h3>Images that are nearly the same</h3>"
        + text(words, "warn" if found["leaks"] else "")
        + pictures(items, wide=True)
    )


def _lists(found: Mapping[str, Any]) -> str:
    parts = []
    unreadable = [f"{one['file_name']}: {one['problem']}" for one in found["unreadable"]]
    for title, lines, count in (
        ("Missing image files", found["missing"], len(found["missing"])),
        ("Images that cannot be read", unreadable, len(unreadable)),
        ("Bad entries, left out", found["file"], found["file_count"]),
    ):
        if lines:
            shown = "\n".join(lines[:50]) + (f"\n... and {count - 50} more" if count > 50 else "")
            parts.append(f"<h3>{title} ({count})</h3><pre>{escape(shown)}</pre>")
    return "".join(parts)


def _short(name: str) -> str:
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= 22 else f"{name[:10]}...{name[-9:]}"


def _suggestions(report: Report, config: str) -> str:
    anchors = report["anchors"]
    drawn = ""
    if anchors:
        rows = [
            [one["name"], _sizes_text(one), ", ".join(f"{r:g}" for r in one["ratios"]), *_recall(one)]
            for one in anchors["cases"].values()
        ]
        head = ["anchors", "sizes, p2 to p6", "ratios", "recall at IoU 0.5", "0.7", "mean best IoU"]
        clusters = ", ".join(f"{w:.0f} x {h:.0f}" for w, h in anchors["clusters"]["shapes"])
        words = (
            f"{len(anchors['clusters']['shapes'])} clusters of the boxes at the network, width x height (k-means by "
            f"IoU, mean IoU {anchors['clusters']['mean_iou']:.2f}): {clusters}."
        )
        drawn = (
            figure(figures_pictures.draw_anchors(report)) + table(head, rows, numbers=(3, 4, 5)) + text(words, "faint")
        )
    advice = [_advice(one) for one in report["suggestions"]]
    shown = "<h3>As a configuration (--suggest)</h3><pre>" + escape(config) + "</pre>"
    return section("suggestions", "Suggestions", *advice, drawn, shown)


def _sizes_text(case: Mapping[str, Any]) -> str:
    return ", ".join("/".join(f"{size:g}" for size in level) for level in case["sizes"])


def _recall(case: Mapping[str, Any]) -> list[str]:
    return [share(case["recall50"]), share(case["recall70"]), f"{case['mean_iou']:.2f}"]


def _advice(one: Mapping[str, Any]) -> str:
    command = f"<p><code>{escape(one['command'])}</code></p>" if one["command"] else ""
    base = f"<p><code>configs/_base_/{escape(one['base'])}</code></p>" if one["base"] else ""
    return (
        f'<div class="advice"><span class="topic">{escape(one["topic"])}</span><p><b>{escape(one["what"])}</b></p>'
        f"<p>{escape(one['reason'])}</p>{command}{base}</div>"
    )


# The report of a data set as a folder: index.html for people, report.json for programs.

PAGE, NUMBERS = "index.html", "report.json"


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise DataError where the report would replace a file, unless `overwrite`."""
    for name in (PAGE, NUMBERS):
        if (folder / name).exists() and not overwrite:
            raise DataError(f"{folder / name} exists already; pass --overwrite to replace it, or name another folder")


def write_report(
    folder: Path, report: Mapping[str, Any], dataset: CocoDataset, config: str, *, overwrite: bool = False
) -> Path:
    """Write the page and the numbers; return the path of the page.

    report: see data/inspection/inspect_data.py. dataset: what its image indices count. config: the suggested YAML.
    Raises DataError where a file is there, unless `overwrite`, or cannot be written.
    """
    check_folder(folder, overwrite=overwrite)
    contents = {PAGE: whole_page(report, dataset, config), NUMBERS: json.dumps(report, indent=1) + "\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be made ({error.strerror}); name another one") from None
    for name, content in contents.items():
        with written_whole(folder / name, "the report") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return folder / PAGE
