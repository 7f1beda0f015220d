"""A whole tuning: an artifact and its float model in, an artifact of the same formats and bytes out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from bitwright.engine.workers import Workers, cores
from bitwright.errors import BadArtifact, Refused
from bitwright.models.skeleton import skeleton
from bitwright.models.source import open_source
from bitwright.models.structure import infer
from bitwright.protocols import PlaneSpec
from bitwright.spec import fingerprint, to_spec
from bitwright.tune import data
from bitwright.tune.settings import Tuning
from bitwright.tune.student import Student, product_type, teacher
from bitwright.tune.train import Trainer

if TYPE_CHECKING:
    from bitwright.models.source import Source

Progress = Callable[[str, int, int], None]
Told = Callable[[int, float], None]  # step, its loss
SAVE_EVERY = 240.0  # seconds between states in the journal
PROBE = 2  # steps timed to turn minutes into steps, after one to warm up


@dataclass(frozen=True)
class Tuned:
    """What a tuning made."""

    manifest: Manifest
    seconds: float
    tokens_per_second: float  # while learning, in this process


def tune(job: Tuning, progress: Progress = lambda what, done, of: None, told: Told = lambda step, loss: None) -> Tuned:
    """Carry out a tuning; the same call after an interruption goes on where it was, to the same bytes."""
    began = time.monotonic()
    require_free(job.out)
    with lock(job.out):
        artifact, source = opened(job)
        origin = _origin(artifact)
        ids = data.windows(job, source, origin.calibration, progress)
        text = data.described(job, ids)
        dtype = product_type()
        journal = Journal(job.out, _identity(job, artifact, source, text, dtype))
        with Workers(job.threads or cores()) as workers:
            structure = infer(skeleton(source.config))
            student = Student(artifact, source, job.learning, dtype, workers)
            trainer = Trainer(teacher(source, structure, dtype), student, job.learning, workers, dtype)
            course = Course(job, trainer, journal, ids, progress, told)
            course.run()
        tuning = TuningRow(
            base=_base(artifact), data=text, learning=to_spec(job.learning), products=str(dtype).removeprefix("torch."),
            steps=course.steps, tokens=course.steps * job.learning.batch * job.learning.length,
            before=course.before, after=course.after,
        )  # fmt: skip
        origin = origin.model_copy(update={"tuning": tuning, "fingerprint": journal.fingerprint})
        manifest = _write(job.out, artifact, student, origin, progress)
        journal.remove()
    return Tuned(manifest, time.monotonic() - began, course.rate)


def opened(job: Tuning) -> tuple[Artifact, Source]:
    """The artifact and the float model it was made from; `Refused` if that is not known or has changed."""
    artifact = open_artifact(job.artifact)
    lineage = _origin(artifact).lineage
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
    return {
        "torch": torch.__version__,
        "artifact": _base(artifact),
        "model": source.digest(),
        "data": text.sha256,
        "learning": to_spec(job.learning),
        "products": str(dtype),
        "steps": job.steps,
        "minutes": job.minutes,
        "seed": job.seed,
    }


class Course:
    """The steps of a tuning, with a journal of its state: two states in turn, so that one is always whole."""

    def __init__(
        self, job: Tuning, trainer: Trainer, journal: Journal, ids: Tensor, progress: Progress, told: Told
    ) -> None:
        self.job, self.trainer, self.journal, self.progress, self.told = job, trainer, journal, progress, told
        self.ids, self.held = ids[: -data.HELD], ids[-data.HELD :]
        self.steps, self.before, self.after, self.rate = 0, 0.0, 0.0, 0.0

    def run(self) -> None:
        """All steps, from the last state of the journal on."""
        learning = self.job.learning
        self._plan()
        done = self._restore()
        self.progress("tuning", done, self.steps)
        began = saved = time.monotonic()
        for number in range(done, self.steps):
            batch = data.batch(self.ids, number, learning.batch)
            loss = self.trainer.step(batch, learning.factor(number, self.steps), number)
            self.progress("tuning", number + 1, self.steps)
            self.told(number, loss)
            if time.monotonic() - saved > SAVE_EVERY:
                self._save(number + 1)
                saved = time.monotonic()
        seconds = max(time.monotonic() - began, 1e-9)
        self.rate = (self.steps - done) * learning.batch * learning.length / seconds
        self.progress("measuring", 0, 1)
        self.trainer.encode()
        self.after = self.trainer.divergence(self.held)

    def _plan(self) -> None:
        """Steps and the divergence before the first one: noted once, kept by every later process."""
        if self.journal.get("plan") is None:
            self.progress("measuring", 0, 1)
            before = self.trainer.divergence(self.held)
            self.journal.put("plan", {}, {"steps": self.job.steps or self._affordable(), "before": before})
        notes = self.journal.notes("plan")
        self.steps, self.before = int(notes["steps"]), float(notes["before"])

    def _affordable(self) -> int:
        """Steps that fit into the minutes, from a few that move nothing."""
        assert self.job.minutes is not None
        batch = data.batch(self.ids, 0, self.job.learning.batch)
        self.trainer.step(batch, 0.0, 0)
        began = time.monotonic()
        for number in range(PROBE):
            self.trainer.step(batch, 0.0, number)
        seconds = (time.monotonic() - began) / PROBE
        self.trainer.forget()
        return max(1, int(60 * self.job.minutes / seconds))

    def _restore(self) -> int:
        """Steps that are done."""
        found = {part: notes for part in ("state-0", "state-1") if (notes := self._whole(part)) is not None}
        if not found:
            return 0
        part = max(found, key=found.__getitem__)
        self.trainer.restore(self.journal.get(part) or {})
        return found[part]

    def _whole(self, part: str) -> int | None:
        return int(self.journal.notes(part)["step"]) if self.journal.get(part) is not None else None

    def _save(self, step: int) -> None:
        before = {part: self._whole(part) or 0 for part in ("state-0", "state-1")}
        self.journal.put(min(before, key=before.__getitem__), self.trainer.state(), {"step": step})


def _write(out: Path, artifact: Artifact, student: Student, origin: Origin, progress: Progress) -> Manifest:
    """The artifact with the tuned planes and vectors in the place of its own; reopened and compared."""
    progress("writing", 0, 1)
    planes = student.planes()

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
        write_manifest(folder, manifest)
        student.same(open_artifact(folder))
    return manifest


def _companions(artifact: Path, folder: Path) -> None:
    """Tokenizer, licence and the like, from the artifact before."""
    for file in sorted(artifact.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (CONFIG, MANIFEST, CARD, INDEX):
            shutil.copyfile(file, folder / file.name)
