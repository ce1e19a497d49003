"""Whether a fusion is worth it: compared with each of its members alone, tuned by the same search on the same folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detseg.tuning.tuning import Comparison, TuningResult, compare, to_plain


@dataclass(frozen=True)
class AgainstMembers:
    """alone: result of each member by name. leads: comparison of each member (before) with the fusion (after).

    Scores are cross-fitted; with only one fold they are on the images that the settings were chosen on.
    """

    alone: Mapping[str, TuningResult]
    leads: Mapping[str, Comparison]

    @classmethod
    def of(
        cls, fusion: TuningResult, alone: Mapping[str, TuningResult], count: int, *, bootstrap: int, seed: int = 0
    ) -> AgainstMembers:
        """Compare the fusion with its members on `count` images, all with the same bootstrap samples."""
        leads = {
            name: compare(member.outcome, fusion.outcome, count, bootstrap=bootstrap, seed=seed)
            for name, member in alone.items()
        }
        return cls(alone, leads)

    @property
    def best(self) -> str:
        """The name of the best member; of a tie, the first."""
        scores = {name: lead.before.value for name, lead in self.leads.items()}
        return max(scores, key=lambda name: -1.0 if scores[name] is None else scores[name])

    @property
    def fusion_is_better(self) -> bool:
        """Whether the fusion's score is higher than that of the best member; possibly by chance."""
        return (self.leads[self.best].gain.value or 0.0) > 0

    def verdict(self, metric: str) -> str:
        """Return one sentence on whether the fusion beats its best member."""
        lead = self.leads[self.best]
        if lead.gain.value is None:
            return f"the fusion cannot be compared with its best member {self.best}: {metric} is not defined"
        interval = "" if lead.gain.low is None else f"; 95 % of bootstrap {lead.gain.low:+.4f} to {lead.gain.high:+.4f}"
        numbers = f"{metric} {lead.after.value:.4f} against {lead.before.value:.4f}, {lead.gain.value:+.4f}{interval}"
        if not self.fusion_is_better:
            return f"the fusion does not beat its best member {self.best} alone ({numbers}): use that member"
        if lead.gain.low is None or lead.gain.low <= 0:
            return f"the fusion is ahead of its best member {self.best}, perhaps by chance ({numbers})"
        return f"the fusion beats its best member {self.best} ({numbers})"

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "members": {
                name: {**to_plain(result), "fusion_gains": asdict(self.leads[name].gain)}
                for name, result in self.alone.items()
            },
            "best_member": self.best,
            "fusion_beats_best_member": self.fusion_is_better,
        }
