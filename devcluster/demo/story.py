"""The job of the demo, from apply to Completed, with one pod killed on the way.

Promise: every claim the demo prints at its end was checked: the run completed, a pod died and the
step went on from a checkpoint, the model beats a unigram model. What did not happen raises.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live

from devcluster.demo.job_view import JobView, LossCurve
from devcluster.demo.screen import StoryLine, job_panel, one_line
from devcluster.errors import DevclusterError
from devcluster.kubectl import Kubectl
from lmtraining_api import ConditionType
from lmtraining_api.names import LABEL_JOB_NAME, LABEL_REPLICA

JOB_SECONDS_MAX = 900
POLL_SECONDS = 0.5
KILL_AT_FRACTION = 0.4
STORY_LINES_MAX = 100


@dataclass
class Story:
    """One job followed to its end."""

    kubectl: Kubectl
    console: Console
    name: str
    also: Callable[[], None] = lambda: None
    """What is to be done at each look."""
    curve: LossCurve = field(default_factory=LossCurve)
    lines: list[StoryLine] = field(default_factory=list)
    killed: bool = False
    _said: tuple[str, str] = ("", "")
    _printed: str = ""
    _started: float = field(default_factory=time.monotonic)

    def follow(self) -> JobView:
        """Watch until the job has ended; kill the second pod on the way."""
        with Live(console=self.console, auto_refresh=False, transient=False) as live:
            while True:
                view = self._look()
                if self.console.is_terminal:
                    columns, rows = self.console.size
                    panel = job_panel(view, self.lines, columns=columns, rows=rows)
                    live.update(panel, refresh=True)
                if view.status.is_terminal:
                    return view
                if time.monotonic() - self._started > JOB_SECONDS_MAX:
                    raise DevclusterError(
                        f"the job did not end within {JOB_SECONDS_MAX} s; "
                        f"its last word: {view.state}: {view.message}"
                    )
                time.sleep(POLL_SECONDS)

    def _look(self) -> JobView:
        view = JobView.of(self.kubectl.get("lmtj", self.name))
        self.also()
        self.curve.add(view)
        self._tell(view)
        if not self.killed and view.state == "Training" and self._may_kill(view):
            self._kill()
        return view

    def _may_kill(self, view: JobView) -> bool:
        return view.fraction >= KILL_AT_FRACTION and view.status.checkpoint is not None

    def _kill(self) -> None:
        """Delete one pod, as an impatient administrator would."""
        pods = self.kubectl.list("pods", f"{LABEL_JOB_NAME}={self.name},{LABEL_REPLICA}=1")
        running = [
            pod
            for pod in pods
            if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp")
        ]
        if not running:
            return
        pod = running[0]["metadata"]["name"]
        self.kubectl.run("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        self.killed = True
        self._note("", f"killed pod {pod}: kubectl delete pod --force --grace-period=0")

    def _tell(self, view: JobView) -> None:
        said = (view.state, view.said if view.state != "Training" else "")
        if said != self._said:
            if said[1] or view.state != self._said[0]:
                self._note(*said)
            self._said = said
        line = one_line(view)
        if not self.console.is_terminal and line != self._printed:
            self._printed = line
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _note(self, state: str, text: str) -> None:
        self.lines.append(StoryLine(time.monotonic() - self._started, state, text))
        del self.lines[:-STORY_LINES_MAX]


def check(view: JobView, story: Story) -> list[str]:
    """What the demo set out to show; each line was checked, and what failed raises."""
    status = view.status
    summary = status.condition(ConditionType.SUCCEEDED)
    recovery = status.last_recovery
    claims = {
        "the job completed": summary is not None and summary.reason == "Completed",
        "a pod was killed in the middle": story.killed,
        "another pod took its place, and the gang went on": status.restarts.total >= 1
        and recovery is not None,
        "a checkpoint is intact": status.checkpoint is not None,
        "the model is exported": bool(status.artifacts.export),
        "the model beats a unigram model by 1 nat or more": bool(status.metrics.validation_loss)
        and float(status.metrics.validation_loss) < float(status.metrics.unigram_loss) - 1.0,
    }
    broken = [claim for claim, holds in claims.items() if not holds]
    if broken:
        raise DevclusterError(
            f"the demo did not show that {'; that '.join(broken)} ({view.message})"
        )
    return list(claims)
