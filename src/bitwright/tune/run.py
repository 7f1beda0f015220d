"""A whole tuning: an artifact and its float model in, an artifact of the same formats and bytes out."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitwright.artifact.folder import draft, lock, require_free
from bitwright.artifact.layout import CARD, CONFIG, INDEX, MANIFEST, Calibration, Manifest, Origin, TuningRow
from bitwright.artifact.read import Artifact, open_artifact
from bitwright.artifact.write import Contents, write_artifact, write_manifest
from bitwright.engine.journal import Journal
from bitwright.engine.verify import verified
from bitwright.engine.workers import Workers, product_type
from bitwright.errors import BadArtifact, Refused
from bitwright.models.skeleton import skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.protocols import PlaneSpec
from bitwright.spec import fingerprint, to_spec
from bitwright.tune import data
from bitwright.tune.course import Course, Progress, Told
from bitwright.tune.ranks import Ranks
from bitwright.tune.settings import Tuning
from bitwright.tune.student import Student, teacher
from bitwright.tune.train import Trainer

if TYPE_CHECKING:
    from bitwright.models.source import Source


@dataclass(frozen=True)
class Tuned:
    """What a tuning made."""

    manifest: Manifest
    seconds: float
    tokens_per_second: float  # while learning, since the last interruption


def tune(
    job: Tuning,
    progress: Progress = lambda what, done, of: None,
    told: Told = lambda step, loss: None,
) -> Tuned:
    """Carry out a tuning; the same call after an interruption goes on where it was, to the same bytes.

    Under torchrun all processes make this call; the first writes.
    """
    began = time.monotonic()
    ranks = Ranks()
    require_free(job.out)
    if job.learning.batch % ranks.count:
        raise Refused(f"{job.learning.batch} sequences a step do not spread evenly over {ranks.count} processes.")
    with lock(job.out) if ranks.leads else nullcontext():
        artifact, source = opened(job)
        job = job.fitted(source)
        origin = _origin(artifact)
        ids = data.windows(job, source, origin.calibration, progress)
        text = data.described(job, ids)
        dtype = product_type()
        with Workers(job.threads or ranks.threads) as workers:
            structure = infer(skeleton(source.config))
            student = Student(artifact, source, job.learning, dtype, workers, lambda i: ranks.owner(i) == ranks.rank)
            # After what may refuse: a journal of refused settings would stand in the way of better ones.
            journal = _journal(job, _identity(job, artifact, source, text, dtype), ranks)
            trainer = Trainer(teacher(source, structure, dtype), student, job.learning, workers, dtype, ranks)
            course = Course(job, trainer, journal, ids, progress, told)
            course.run()
        tuning = TuningRow(
            base=_base(artifact), data=text, learning=to_spec(job.learning), products=str(dtype).removeprefix("torch."),
            steps=course.steps, tokens=course.steps * job.learning.batch * job.length,
            before=course.before, after=course.after,
        )  # fmt: skip
        origin = origin.model_copy(update={"tuning": tuning, "fingerprint": journal.fingerprint})
        planes = ranks.merged(student.planes())
        if ranks.leads:
            _write(job.out, artifact, student, planes, origin, progress)
            journal.remove()
        ranks.wait()
    manifest = open_artifact(job.out).manifest
    assert manifest is not None
    return Tuned(manifest, time.monotonic() - began, course.rate)


def _journal(job: Tuning, identity: dict[str, Any], ranks: Ranks) -> Journal:
    """One folder for all processes, made by the first."""
    if not ranks.leads:
        ranks.wait()
    journal = Journal(job.out, identity | ({"processes": ranks.count} if ranks.count > 1 else {}))
    if ranks.leads:
        ranks.wait()
    return journal


def opened(job: Tuning) -> tuple[Artifact, Source]:
    """The artifact and the float model it was made from; `Refused` if that is not known or has changed."""
    artifact = open_artifact(job.artifact)
    lineage = _origin(artifact).lineage
    if artifact.manifest is not None and artifact.manifest.elastic is not None:
        raise Refused(
            f"{job.artifact} is a file in blocks, whose beginnings would not learn: tune another kind of file."
        )
    name = job.against or lineage.get("name")
    if not isinstance(name, str):
        raise Refused(f"{job.artifact} does not say which float model it was made from: give it with --against.")
    source = open_source(name)
    if source.digest() != lineage.get("digest"):
        raise Refused(f"{name} is not the float model that {job.artifact} was made from: give that with --against.")
    return artifact, source


def _origin(artifact: Artifact) -> Origin:
    if artifact.manifest is None:
        raise BadArtifact(f"{artifact.path} has no {MANIFEST}, so its origin is not known: quantize the model again.")
    return Origin(**{name: getattr(artifact.manifest, name) for name in Origin.model_fields})


def _base(artifact: Artifact) -> str:
    assert artifact.manifest is not None
    return fingerprint([row.sha256 for row in artifact.manifest.files if row.name.endswith(".safetensors")])


def _identity(job: Tuning, artifact: Artifact, source: Source, text: Calibration, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that decides the bytes of the result; minutes are turned into steps once, and noted."""
    from bitwright import __version__

    return {
        "bitwright": __version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "artifact": _base(artifact),
        "model": source.digest(),
        "data": text.sha256,
        "learning": to_spec(job.learning),
        "products": str(dtype),
        "steps": job.steps,
        "minutes": job.minutes,
        "seed": job.seed,
    }


def _write(
    out: Path, artifact: Artifact, student: Student, planes: dict[str, Tensor], origin: Origin, progress: Progress
) -> None:
    """The artifact with the tuned planes and vectors in the place of its own; reopened and compared."""
    progress("writing", 0, 1)

    def tensor(name: str) -> Tensor:
        return planes[name] if name in planes else artifact.tensor(name)

    assert artifact.manifest is not None
    contents = Contents(
        config={key: value for key, value in artifact.config.items() if key != "quantization_config"},
        quantization=artifact.quantization,
        kept={
            name: PlaneSpec(artifact.tensor(name).dtype, tuple(artifact.tensor(name).shape)) for name in artifact.kept
        },
        origin=origin,
        parts={row.name: row.part for row in artifact.manifest.plan},
    )
    with draft(out) as folder:
        manifest = write_artifact(folder, contents, tensor, lambda place: _companions(artifact.path, place))
        progress("verifying", 0, 1)
        manifest = verified(folder, contents, tensor, manifest)
        manifest = manifest.model_copy(update={"skipping": artifact.manifest.skipping})
        write_manifest(folder, manifest)
        student.same(open_artifact(folder))


def _companions(artifact: Path, folder: Path) -> None:
    """Tokenizer, licence and the like, from the artifact before."""
    for file in sorted(artifact.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (CONFIG, MANIFEST, CARD, INDEX):
            shutil.copyfile(file, folder / file.name)
