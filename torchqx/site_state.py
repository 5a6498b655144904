"""One linear site of one model while it calibrates, and what was solved for it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from torchqx.errors import PlanMismatchError
from torchqx.fx_passes.observe import result_mask, rows_mask
from torchqx.fx_passes.regions import Region
from torchqx.fx_passes.sites import Form
from torchqx.layouts import WeightLayout
from torchqx.observers import ChannelMinMaxObserver, RowReservoir, TensorObserver
from torchqx.observers.solvers import Sample
from torchqx.plan import SiteRecord, records_to_json
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.recipe import AffineRecipe
from torchqx.rotations import Hadamard
from torchqx.rows import conv_rows, left_rows
from torchqx.scan_state import ScanState
from torchqx.storage import QuantizedWeight
from torchqx.transforms import Chain, rotated
from torchqx.watched import version_of

REGION_TOKENS = 4096


@dataclass(frozen=True)
class Operation:
    """A weighted matmul of a site, without its graph."""

    key: str
    layout: WeightLayout
    weight_name: str


class SiteState:
    """Statistics and solution of a site; found through its weights, so every graph that reads them shares it.

    Attributes:
        record: the site's line in the report.
        parameters: the solution; None while calibrating and for a site that stays float.
        calls: calibration calls seen; digests: what tells them apart.
        turn: (X / g) R, the map in front of the site's shift and scale; settled before the first call, since the
            ranges that are observed are those behind it.
        output_rotations: operation's index -> the rotation of its result, where it has one.
        unrotated: why there is no rotation although the recipe rotates, or why it does not fold.
        after_scan: whether the site reads a state-space scan's result.
        scans: (operation's index, key) -> the state of a scan or convolution whose scales this operation's weight
            carries; range_from: the one among any site's whose input this site reads too, and so its range.
        placement: of the rotation: "folded" or "online"; empty where no graph was asked.
    """

    def __init__(self, key: str, operations: list[Operation], form: Form, recipe: AffineRecipe, skip: str = "",
                 after_scan: bool = False) -> None:
        self.operations, self.form, self.recipe = operations, form, recipe
        names = [op.weight_name for op in operations]
        self.record = SiteRecord(key, "linear", "skipped" if skip else "calibrating", reason=skip,
                                 operations=[op.key for op in operations], weights=names)
        self.samples: list[Sample] = []
        self.loss_on = "outputs"
        self.biases: list[Tensor | None] = [None] * len(operations)
        self.calls, self.sample_call = 0, None
        self.digests: set[bytes] = set()
        self.parameters: SiteParameters | None = None
        self.turn, self.unrotated, self.placement = Chain(), "", ""
        self.rotation: Hadamard | None = None
        self.norm: Tensor | None = None
        self.output_rotations: dict[int, Hadamard] = {}
        self.after_scan = after_scan
        self.scans: dict[tuple[int, str], ScanState] = {}
        self.range_from: ScanState | None = None
        self.forget_activations()
        self._place: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._quantized: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def adopt(self, weight: Tensor, index: int) -> None:
        """``weight`` is the parameter of operation ``index``."""
        if not self._place:
            columns = self.operations[index].layout.to_matrix(weight).shape[-1]
            rotation, self.unrotated = self.recipe.rotation(self.record.key, columns, self.after_scan)
            self.rotate(rotation, None, columns)
        self._place[weight] = index

    def rotate(self, rotation: Hadamard | None, norm: Tensor | None, columns: int) -> None:
        """Put (X / g) R in front of the shift and scale, for rows of ``columns`` elements; before anything is seen.

        Args:
            norm: g, [K], without zeros.
        """
        assert self.calls == 0
        self.rotation, self.norm, self.turn = rotation, norm, rotated(norm, rotation, columns)
        self.forget_activations()

    def weights(self) -> list[Tensor]:
        """The parameters of the operations, in order. Raises PlanMismatchError if the model dropped one of them."""
        alive = self.alive()
        if len(alive) < len(self.operations):
            raise PlanMismatchError("a parameter was replaced during calibration", where=self.record.key,
                                    remedy="calibrate again.")
        return [alive[i] for i in range(len(self.operations))]

    def alive(self) -> dict[int, Tensor]:
        """Operation's index -> its parameter, for those that still exist."""
        return dict(sorted(((i, w) for w, i in list(self._place.items())), key=lambda item: item[0]))

    @property
    def calibrating(self) -> bool:
        return self.record.status == "calibrating"

    @property
    def wants_region(self) -> bool:
        return self.recipe.loss == "auto" and not self.samples

    def observe(self, x: Tensor, padding: Tensor | None, kernel: tuple[int, ...] = ()) -> None:
        """Record the activation of one call, in the site's own form (see ``Form``)."""
        if self.form is Form.CONV:
            x = conv_rows(x, kernel)
        elif self.form is Form.LEFT:
            x = left_rows(x)
        mask = rows_mask(padding, x.shape)
        self.channels(x, mask)
        self.rows(x, mask)
        if self.turned is not None:
            self.turned(self.turn.activation(x.detach().float()), mask)

    def observe_region(self, region: Region, x: Tensor, values: dict[Any, Any], padding: Tensor | None,
                       call: Any = None) -> None:
        """Keep one batch to measure ``region``'s loss on; batches of too many tokens are left to the row sample.

        Args:
            call: what tells this batch from others, for whoever replaces its ``x`` later.
        """
        if x.shape[:-1].numel() > REGION_TOKENS:
            return
        self.sample_call = call
        self.samples.append(Sample(x.float(), region.bind(values), result_mask(padding, values[region.output].shape)))
        self.loss_on = region.on

    def quantized(self, weight: Tensor) -> QuantizedWeight | None:
        """The storage tensor for ``weight``, made again when that was written to; None if the site is float."""
        if self.parameters is None:
            return None
        plan = records_to_json(self.scan_records(self._place[weight]))  # scans may be solved after the weight
        version = version_of(weight), plan
        made = self._quantized.get(weight)
        if made is None or made[0] != version:
            operation = self.operations[self._place[weight]]
            with torch.inference_mode(False):
                parameters = replace(self.parameters, output_rotation=self.output_rotations.get(self._place[weight]),
                                     rotated_keys=self.recipe.rotate_keys)
                made = version, quantize_weight(weight, operation.layout, operation.key, parameters, plan)
            self._quantized[weight] = made
        return made[1]

    def scan_records(self, index: int) -> list[SiteRecord]:
        """Those that the weight of operation ``index`` carries."""
        return [state.record for (i, _), state in self.scans.items() if i == index]

    def forget_activations(self) -> None:
        """Start the statistics of the activation again; what the region's sample holds beside it stays."""
        self.channels = ChannelMinMaxObserver(site=self.record.key)
        self.turned = ChannelMinMaxObserver(site=self.record.key) if self.turn.parts else None
        self.rows = RowReservoir(site=self.record.key, capacity=self.recipe.sample_rows)

    def observers(self) -> list[TensorObserver]:
        """All that hold statistics, for calibration over several ranks."""
        own = [o for o in (self.channels, self.turned, self.rows) if o is not None]
        return own + [o for scan in self.scans.values() for _, o in sorted(scan.observers.items())]

    def restart(self) -> None:
        """Calibrate from the beginning: what was seen so far gives no solution."""
        self.forget_activations()
        self.samples.clear()
        self.scans.clear()
        self.range_from = None
        self.loss_on = "outputs"
        self.calls, self.sample_call = 0, None
        self.digests.clear()

    def release(self) -> None:
        """Drop the statistics once the site is solved."""
        self.samples.clear()
        self.digests.clear()
        self.sample_call = None
        self.rows = RowReservoir(site=self.record.key, capacity=1)
        self.range_from = None
