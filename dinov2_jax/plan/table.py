"""What was found out about a step, in words and tables."""

import collections
from collections.abc import Iterator
from typing import Any

from dinov2_jax.plan.topologies import GIB

MIB = 2**20

RESERVED = 0.75
"""Share of a GPU's memory that JAX takes unless it is told otherwise."""

HEAD = "| topology | devices | replicas x ring | images/device | fits | peak GiB | "
HEAD += "limit GiB | largest batch | wire MiB | gathers overlapped | bound ms | "
HEAD += "images/s | days | chip-hours | compile s |"


def page(found: dict[str, Any], variant: str) -> str:
    """All about one topology."""
    return "\n".join([*_heading(found, variant), *_body(found), ""])


def _heading(found: dict[str, Any], variant: str) -> Iterator[str]:
    """Devices and batch."""
    mesh = found["mesh"]
    yield (
        f"{variant} on {found['topology']}: {found['devices']} x "
        f"{found['device_kind']}, hosts {found['hosts']}, replicas {mesh['replica']} "
        f"on rings of {mesh['fsdp']}"
    )
    yield (
        f"  batch         {found['per_device']} images a device, {found['batch']} a "
        f"step, in groups of {found['group_size']}"
    )
    if "tries" in found:
        best = found["largest"]
        tried = ", ".join(_tried(one) for one in found["tries"])
        answer = f"{best} images a device" if best else "none that was tried"
        yield f"  largest       {answer}; compiled: {tried}"


def _tried(one: dict[str, Any]) -> str:
    """One compilation of a search."""
    if one["fits"]:
        return f"{one['per_device']} ({one['needed'] / GIB:.2f} GiB)"
    return f"{one['per_device']} (too much)"


def _body(found: dict[str, Any]) -> Iterator[str]:
    """All that a compiled program tells."""
    if "memory" not in found:
        yield "  fits          no"
        return
    memory, state = found["memory"], found["state"]
    share = found["needed"] / memory["limit"]
    yield (
        f"  fits          {'yes' if found['fits'] else 'no'}: "
        f"{found['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f} GiB ({share:.0%})"
        + (", unoptimised" if found["fast"] else "")
    )
    if found["peaks"]["network"] and RESERVED < share <= 1:
        yield (
            f"                JAX reserves {RESERVED:.0%} of a GPU; for more set "
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
        )
    rest = memory["peak"] - sum(state.values())
    named = {
        "parameters": state["parameters"],
        "teacher": state["teacher"],
        "optimizer": state["optimizer"],
        "batch": state["batch"],
        "activations and the rest": rest + state["other"],
        "program": memory["program"],
    }
    if memory["host"]:
        named["in the host's memory"] = memory["host"]
    sizes = ", ".join(f"{name} {size / GIB:.2f}" for name, size in named.items())
    yield f"  GiB           {sizes}"
    yield from _operations(found["flops"])
    yield from _collectives(found)
    yield from _bound(found)
    yield (
        f"  compiled      in {found['compile_s']:.0f} s "
        f"(traced in {found['lower_s']:.0f} s), {found['rss'] / GIB:.1f} GiB of memory"
    )


def _operations(flops: dict[str, float]) -> Iterator[str]:
    """Operations a device and step, by formula."""
    yield (
        f"  Tflop         {flops['nominal'] / 1e12:.2f} a device and step by formula; "
        f"{flops['executed'] / 1e12:.2f} without the rows that stochastic depth "
        f"drops, {(flops['executed'] + flops['remat']) / 1e12:.2f} with what is "
        "recomputed"
    )


def _collectives(found: dict[str, Any]) -> Iterator[str]:
    """The collectives, alike ones together, the heaviest first."""
    sent = found["collectives"]
    if not sent:
        yield "  collectives   none"
        return
    overlap = found["gathers_overlapped"]
    if found["fast"]:
        hidden = ", overlap unknown without optimisations"
    elif overlap is None:
        hidden = "; nothing is gathered"
    else:
        hidden = f"; {overlap:.0%} of what is gathered overlaps"
    sent_mib = f"{found['wire'] / MIB:.1f} MiB sent by a device and step"
    yield f"  collectives   {sent_mib}{hidden}"
    alike: dict[tuple, list] = collections.defaultdict(list)
    for one in sent:
        sizes = tuple((dtype, tuple(dims)) for dtype, dims in one["shapes"])
        key = (one["kind"], len(one["members"]), one["trips"], one["in_loop"])
        alike[*key, one["asynchronous"], sizes].append(one)
    rows = sorted(alike.items(), key=lambda row: -sum(o["wire"] for o in row[1]))
    small = [row for row in rows if sum(o["wire"] for o in row[1]) < MIB / 4]
    yield (
        f"    {'kind':<19}{'group':>6}{'count':>6}{'trips':>6}{'MiB each':>10}"
        f"{'MiB sent':>10}  loop  overlaps  array"
    )
    for (kind, group, trips, loop, overlaps, sizes), ones in rows:
        if (wire := sum(o["wire"] for o in ones)) < MIB / 4:
            continue
        mark = "?" if found["fast"] else "yes" if overlaps else "no"
        yield (
            f"    {kind:<19}{group:>6}{len(ones):>6}{trips:>6}"
            f"{ones[0]['bytes'] / MIB:>10.2f}{wire / MIB:>10.2f}  "
            f"{'yes' if loop else 'no':<6}{mark:<10}{_arrays(sizes)}"
        )
    if small:
        count = sum(len(ones) for _, ones in small)
        wire = sum(o["wire"] for _, ones in small for o in ones)
        yield f"    and {count} small ones, {wire / MIB:.2f} MiB sent together"


def _arrays(sizes: tuple) -> str:
    """The largest array of a collective, and how many there are."""

    def count(shape: tuple) -> int:
        product = 1
        for n in shape[1]:
            product *= n
        return product

    dtype, dims = max(sizes, key=count)
    more = f" and {len(sizes) - 1} more" if len(sizes) > 1 else ""
    return f"{dtype}{list(dims)}{more}"


def _bound(found: dict[str, Any]) -> Iterator[str]:
    """The least time of a step with what it rests on, and the run that follows."""
    least, peaks, run = found["bound"], found["peaks"], found["run"]
    network = peaks["network"]
    beyond = f", {network / 1e9:.0f} beyond its node" if network else ""
    yield (
        f"  lower bound   {1e3 * least['seconds']:.1f} ms a step, limited by "
        f"{least['limit']}: the largest of"
    )
    yield (
        f"    compute {1e3 * least['compute']:.1f} ms at "
        f"{peaks['flops'] / 1e12:.0f} Tflop/s, plus collectives that overlap with "
        f"nothing {1e3 * least['exposed']:.1f} ms"
    )
    yield (
        f"    memory {1e3 * least['memory']:.1f} ms: {found['bytes_moved'] / GIB:.1f} "
        f"GiB at least, at {peaks['hbm'] / 1e9:.0f} GB/s"
    )
    yield (
        f"    wire {1e3 * least['wire']:.1f} ms at {peaks['link'] / 1e9:.0f} GB/s out "
        f"of a device over all its links{beyond}"
    )
    yield f"    peaks: {peaks['source']}"
    time = (
        f"{run['days']:.1f} days" if run["days"] >= 2 else f"{24 * run['days']:.1f} h"
    )
    yield (
        f"  at that rate  {run['images_s']:.0f} images/s; the recipe's "
        f"{found['recipe_images'] / 1e6:.0f} million images in {time}, "
        f"{run['chip_hours']:.0f} chip-hours at least"
    )


def refusal(found: dict[str, Any], config: Any) -> str:
    """Why it does not fit and what to change, on one line."""
    limit = found["limit"]
    line = f"{found['topology']}: {found['per_device']} images a device do not fit"
    if found["needed"]:
        over = found["needed"] - limit
        line += (
            f": {found['needed'] / GIB:.2f} GiB are needed and {limit / GIB:.2f} are "
            f"there, {over / GIB:.2f} too few"
        )
    ways = ["fewer images with --batch-per-device, or --fit for the most that fit"]
    if config.mesh.remat in ("none", "dots"):
        ways.append("--config.mesh.remat=full")
    if found["mesh"]["replica"] > 1:
        ways.append(
            f"a ring wider than {found['mesh']['fsdp']} with --config.mesh.fsdp"
        )
    return f"{line}; change: {', '.join(ways)}."


def overview(found: list[dict[str, Any]]) -> str:
    """One line a topology, as a Markdown table."""
    return "\n".join([HEAD, "|---" * (HEAD.count("|") - 1) + "|", *map(_row, found)])


def _row(found: dict[str, Any]) -> str:
    """One line of the overview."""
    mesh = found["mesh"]
    cells = [
        found["topology"],
        found["devices"],
        f"{mesh['replica']} x {mesh['fsdp']}",
        found["per_device"],
        "yes" if found["fits"] else "no",
        f"{found['needed'] / GIB:.2f}" if found["needed"] else "-",
        f"{found['limit'] / GIB:.2f}",
        found.get("largest") or "-",
    ]
    if "memory" in found:
        overlap = found["gathers_overlapped"]
        overlap = "-" if overlap is None else f"{overlap:.0%}"
        overlap = "?" if found["fast"] else overlap
        run = found["run"]
        cells += [f"{found['wire'] / MIB:.1f}", overlap]
        cells += [f"{1e3 * found['bound']['seconds']:.1f}", f"{run['images_s']:.0f}"]
        cells += [f"{run['days']:.2f}", f"{run['chip_hours']:.0f}"]
        cells += [f"{found['compile_s']:.0f}"]
    else:
        cells += ["-"] * 7
    return "| " + " | ".join(map(str, cells)) + " |"
