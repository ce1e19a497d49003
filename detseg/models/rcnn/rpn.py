"""Region Proposal Network (Ren et al. 2015): objectness and box deltas for anchors, their losses, and proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key, part
from detseg.models.rcnn.anchors import AnchorGenerator, AnchorGrid, AnchorOptions
from detseg.models.rcnn.boxes import BoxCoder, BoxRegressionOptions, clip_boxes
from detseg.models.rcnn.layers import ConvNorm, init_normal
from detseg.models.rcnn.matching import Matcher, MatchingOptions, sample_labels
from detseg.models.rcnn.targets import Targets
from detseg.models.torchvision_ops import batched_nms
from detseg.structures.sample import BOX_LOSS


@dataclass(frozen=True)
class ProposalOptions(Options):
    """`pre_nms` proposals are taken from each level before NMS, and `post_nms` from all levels together after it."""

    section = "MODEL.RPN"

    pre_nms_train: int = key("PRE_NMS_TOPK_TRAIN", at_least=1)
    pre_nms_test: int = key("PRE_NMS_TOPK_TEST", at_least=1)
    post_nms_train: int = key("POST_NMS_TOPK_TRAIN", at_least=1)
    post_nms_test: int = key("POST_NMS_TOPK_TEST", at_least=1)
    nms_threshold: float = key("NMS_THRESH", above=0, at_most=1)


@dataclass(frozen=True)
class RPNOptions(ProposalOptions):
    """in_features: its feature maps. boundary_threshold: anchors that extend further beyond the image, in pixels, are
    ignored; negative: none is. min_size: minimum side of proposals, in pixels.
    """

    head: str = key("HEAD_NAME", choices=("StandardRPNHead",), registry=True)
    conv_channels: tuple[int, ...] = key("CONV_DIMS", not_empty=True)
    in_features: tuple[str, ...] = key("IN_FEATURES", not_empty=True)
    boundary_threshold: float = key("BOUNDARY_THRESH")
    loss_weight: float = key("LOSS_WEIGHT", at_least=0)
    min_size: float = key("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", at_least=0)
    anchors: AnchorOptions = part(AnchorOptions)
    matching: MatchingOptions = part(MatchingOptions, section="MODEL.RPN")
    regression: BoxRegressionOptions = part(BoxRegressionOptions, section="MODEL.RPN")

    def check(self, problems: Problems) -> None:
        self.anchors.check_levels(problems, len(self.in_features), "MODEL.RPN.IN_FEATURES")


@dataclass(frozen=True)
class Proposals:
    """Regions of one image that may have an object, best first: boxes (P, 4), clipped, and objectness logits (P,)."""

    boxes: Tensor
    objectness: Tensor


@dataclass(frozen=True)
class RPNOutput:
    """Per level, in the order of the grid's anchors: objectness (B, H * W * A) logits and deltas (B, H * W * A, 4)."""

    objectness: list[Tensor]
    deltas: list[Tensor]
    grid: AnchorGrid


class RPNHead(nn.Module):
    """3 x 3 convolutions, then objectness and deltas by 1 x 1, shared by all levels.

    conv_channels: of the 3 x 3 convolutions; -1 stands for in_channels.
    """

    def __init__(self, in_channels: int, anchors_per_position: int, conv_channels: Sequence[int] = (-1,)) -> None:
        super().__init__()
        widths = [in_channels if width == -1 else width for width in conv_channels]
        convs, channels = [], in_channels
        for width in widths:
            convs.append(ConvNorm(channels, width, 3, relu=True))
            channels = width
        # Detectron2's names: `conv` for one, `conv.conv0`, `conv.conv1`, ... for several.
        self.conv = convs[0]
        if len(convs) > 1:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = ConvNorm(channels, anchors_per_position, 1)
        self.anchor_deltas = ConvNorm(channels, anchors_per_position * 4, 1)
        for layer in [*convs, self.objectness_logits, self.anchor_deltas]:
            init_normal(layer, std=0.01)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness (B, H * W * A) and deltas (B, H * W * A, 4) of every level, float32."""
        objectness, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            objectness.append(self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1).float())
            # The four numbers of an anchor are adjacent channels.
            raw = self.anchor_deltas(hidden).permute(0, 2, 3, 1)
            deltas.append(raw.reshape(raw.shape[0], -1, 4).float())
        return objectness, deltas


class RPN(nn.Module):
    """options: its feature maps, one anchor level each, and the settings of losses and proposals.

    least_objectness: minimum logit of proposals.
    """

    least_objectness = -math.inf

    def __init__(
        self,
        options: RPNOptions,
        *,
        head: RPNHead,
        anchor_generator: AnchorGenerator,
        matcher: Matcher,
        coder: BoxCoder,
    ) -> None:
        super().__init__()
        self.options = options
        self.in_features = options.in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.matcher = matcher
        self.coder = coder

    def forward(self, features: dict[str, Tensor]) -> RPNOutput:
        """Return objectness and deltas for every anchor of a batch."""
        chosen = [features[name] for name in self.in_features]
        objectness, deltas = self.rpn_head(chosen)
        grid = self.anchor_generator([(feature.shape[2], feature.shape[3]) for feature in chosen])
        return RPNOutput(objectness, deltas, grid)

    @torch.no_grad()
    def propose(self, output: RPNOutput, sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """Return the proposals of every image; sizes: (height, width) without padding."""
        options = self.options
        pre_nms, post_nms = options.pre_nms_test, options.post_nms_test
        if self.training:
            pre_nms, post_nms = options.pre_nms_train, options.post_nms_train
        scores, indices, levels = [], [], []
        for number, (level, objectness) in enumerate(zip(output.grid.levels, output.objectness, strict=True)):
            best, index = objectness.topk(min(pre_nms, level.count), dim=1)
            scores.append(best)
            indices.append(index + level.start)
            levels.append(torch.full_like(index[0], number))
        level_of = torch.cat(levels)
        deltas = torch.cat(output.deltas, dim=1)
        proposals = []
        for image, size in enumerate(sizes):
            index = torch.cat([level_indices[image] for level_indices in indices])
            logits = torch.cat([level_scores[image] for level_scores in scores])
            level = level_of
            if self.least_objectness > -math.inf:
                likely = logits >= self.least_objectness
                index, logits, level = index[likely], logits[likely], level[likely]
            boxes = self.coder.decode(deltas[image, index], output.grid.boxes[index])
            finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(logits)
            boxes = clip_boxes(boxes, size)
            valid = finite & (boxes[:, 2:] - boxes[:, :2] > options.min_size).all(dim=1)
            boxes, logits = boxes[valid], logits[valid]
            keep = batched_nms(boxes, logits, level[valid], options.nms_threshold)[:post_nms]
            proposals.append(Proposals(boxes[keep], logits[keep]))
        return proposals

    def losses(
        self, output: RPNOutput, sizes: Sequence[tuple[int, int]], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_loc."""
        objectness = torch.cat(output.objectness, dim=1)
        deltas = torch.cat(output.deltas, dim=1)
        anchors = output.grid.boxes
        class_losses, box_losses = [], []
        for image, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            positive, negative, matches = self._label_anchors(output.grid, size, target)
            logits = torch.cat((objectness[image, positive], objectness[image, negative]))
            truth = torch.zeros_like(logits)
            truth[: len(positive)] = 1
            class_weights = box_weights = None
            if target.is_weighted:
                sampled = torch.cat((positive, negative))
                class_weights = target.class_weights(matches[sampled], truth > 0, anchors[sampled])
                box_weights = target.loss_weights(BOX_LOSS, matches[positive])
            class_losses.append(F.binary_cross_entropy_with_logits(logits, truth, class_weights, reduction="sum"))
            objects = target.boxes[matches[positive]]
            box_losses.append(self.coder.summed_loss(deltas[image, positive], anchors[positive], objects, box_weights))
        weight, box_weight = self.options.loss_weight, self.options.regression.loss_weight
        normalizer = self.options.matching.batch_size * len(targets)
        return {
            "loss_rpn_cls": torch.stack(class_losses).sum() * (weight / normalizer),
            "loss_rpn_loc": torch.stack(box_losses).sum() * (box_weight * weight / normalizer),
        }

    @torch.no_grad()
    def _label_anchors(self, grid: AnchorGrid, size: tuple[int, int], target: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Return the indices of sampled anchors on objects and on background, and the object (R,) of every anchor."""
        matching, margin = self.options.matching, self.options.boundary_threshold
        matches, labels = self.matcher.match_anchors(target.boxes, grid)
        if margin >= 0:
            height, width = size
            x0, y0, x1, y1 = grid.boxes.unbind(1)
            labels[(x0 < -margin) | (y0 < -margin) | (x1 >= width + margin) | (y1 >= height + margin)] = -1
        labels = target.leave_out_ignored(labels, matches, grid.boxes, background=0)
        positive, negative = sample_labels(labels, matching.batch_size, matching.positive_fraction, background=0)
        return positive, negative, matches
