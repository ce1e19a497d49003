"""Encoder-decoder networks with named heads: timm encoders with decoders of segmentation_models_pytorch or our own
(decoders.py), and the classic U-Net (Ronneberger et al. 2015), trained from scratch.

Symbols: B images of H x W pixels, both divided by 2**depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key, part
from detseg.errors import ConfigError
from detseg.models.bottom_up.decoders import RefineNetDecoder, TransposedDecoder
from detseg.models.timm_backbone import TimmBackbone, TimmOptions, timm_network

PLAIN, TIMM = "plain", "timm"
# Transformers (Xie et al., SegFormer, NeurIPS 2021), which timm lacks; feature maps of strides 4 to 32.
MIX_TRANSFORMERS = ("mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5")
INSTALL = 'it needs the package segmentation-models-pytorch: pip install "detseg[unet]"'
# Name -> its module and class in segmentation_models_pytorch.decoders.
SMP_DECODERS = {
    "Unet": "unet.decoder:UnetDecoder",
    "UnetPlusPlus": "unetplusplus.decoder:UnetPlusPlusDecoder",
    "MAnet": "manet.decoder:MAnetDecoder",
}
OWN_DECODERS = {"RefineNet": RefineNetDecoder, "Transposed": TransposedDecoder}
_ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU}


@dataclass(frozen=True)
class NetworkOptions(Options):
    """channels: of the decoder's levels, coarsest first, one per downsampling step. activation, dropout: of the plain
    network.
    """

    section = "MODEL.UNET"

    encoder: str = key("ENCODER", choices=(TIMM, PLAIN, *MIX_TRANSFORMERS))
    decoder: str = key("DECODER", choices=(*SMP_DECODERS, *OWN_DECODERS))
    channels: tuple[int, ...] = key("CHANNELS", at_least=1, not_empty=True)
    activation: str = key("ACTIVATION", choices=tuple(_ACTIVATIONS))
    dropout: float = key("DROPOUT", at_least=0, below=1)
    timm: TimmOptions | None = part(TimmOptions, when=lambda cfg: cfg.MODEL.UNET.ENCODER == TIMM)

    @property
    def depth(self) -> int:
        """Number of downsampling steps."""
        return len(self.channels)

    @property
    def reach(self) -> int | None:
        """Radius of the receptive field, in pixels; None if unknown."""
        if self.encoder != PLAIN:
            return None
        # Each level has two pairs of 3 x 3 convolutions, the coarsest one; levels are aligned to its grid.
        coarsest = 2**self.depth
        return 4 * (coarsest - 1) + 2 * coarsest + coarsest - 1

    def check(self, problems: Problems) -> None:
        if self.encoder == PLAIN:
            return
        try:
            if self.decoder in SMP_DECODERS:
                _decoder_class(self.decoder)
        except ConfigError as error:
            problems.add("MODEL.UNET.DECODER", str(error))
        name, levels = self.encoder, range(5, 6)
        if self.encoder == TIMM:
            name, levels = self.timm.name, timm_network(self.timm.name).levels
        if self.depth not in levels:
            known = ", ".join(map(str, levels))
            expected = f"expected one value per downsampling step of {name}: one of {known}"
            problems.add("MODEL.UNET.CHANNELS", expected)
        elif self.decoder in ("UnetPlusPlus", "MAnet") and 1 not in levels:
            expected = f"{name} has no feature map of stride 2: use Unet or {' or '.join(OWN_DECODERS)}"
            problems.add("MODEL.UNET.DECODER", expected)


def build_encoder_decoder(options: NetworkOptions, in_channels: int) -> tuple[nn.Module, nn.Module]:
    """Return `backbone`, from (B, in_channels, H, W) to feature maps by name, and `decoder`, from these to (B, C, H,
    W), where C is the last of `options.channels`.
    """
    if options.encoder == PLAIN:
        widths = options.channels[::-1]
        layers = {"activation": options.activation, "dropout": options.dropout}
        return PlainEncoder(in_channels, widths, **layers), PlainDecoder(widths, **layers)
    if options.encoder in MIX_TRANSFORMERS:
        backbone = MixTransformer(options.encoder, in_channels)
        return backbone, _decoder(options, backbone.channels)
    features = [f"res{level}" for level in sorted(timm_network(options.timm.name).levels) if level <= options.depth]
    if options.decoder == "Transposed":  # drops parameters of finer maps, which would get no gradient
        features = features[-1:]
    backbone = TimmBackbone(**asdict(options.timm), in_channels=in_channels, out_features=features)
    return backbone, _decoder(options, backbone.channels)


def _decoder(options: NetworkOptions, in_channels: Mapping[str, int]) -> nn.Module:
    if options.decoder in OWN_DECODERS:
        return OWN_DECODERS[options.decoder](in_channels, options.channels)
    return SmpDecoder(options.decoder, in_channels, options.channels)


def _decoder_class(name: str) -> type[nn.Module]:
    """Return the decoder class. Raises ConfigError if its package is not installed."""
    module, _, member = SMP_DECODERS[name].partition(":")
    try:
        return getattr(import_module(f"segmentation_models_pytorch.decoders.{module}"), member)
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({error})") from None


class SmpDecoder(nn.Module):
    """A decoder of segmentation_models_pytorch for feature maps res1, res2, ... of strides 2, 4, ...

    in_channels: by name of the feature map; res1 may be missing, as in transformers.
    """

    def __init__(self, name: str, in_channels: Mapping[str, int], channels: Sequence[int]) -> None:
        super().__init__()
        decoder = _decoder_class(name)
        self.levels = [f"res{level}" for level in range(1, len(channels) + 1)]
        widths = [in_channels.get(level, 0) for level in self.levels]
        # the first entry stands for the image, which these decoders do not use
        self.net = decoder(encoder_channels=[0, *widths], decoder_channels=list(channels), n_blocks=len(channels))
        import_module("segmentation_models_pytorch.base.initialization").initialize_decoder(self.net)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        finest = next(iter(features.values()))
        stride = 2 ** int(next(iter(features)).removeprefix("res"))
        batch, height, width = len(finest), finest.shape[2] * stride, finest.shape[3] * stride
        maps = [finest.new_empty((batch, 0, height, width))]
        for number, level in enumerate(self.levels, start=1):
            empty = finest.new_empty((batch, 0, height >> number, width >> number))
            maps.append(features.get(level, empty))
        return self.net(maps)


class MixTransformer(nn.Module):
    """A mix transformer of segmentation_models_pytorch, randomly initialized; forward returns res2 to res5."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        encoders = import_module("segmentation_models_pytorch.encoders")
        self.net = encoders.get_encoder(name, in_channels=in_channels, depth=5, weights=None)
        self.channels = {f"res{level}": self.net.out_channels[level] for level in range(2, 6)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.channels, self.net(x)[2:], strict=True))


class _DoubleConvolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, activation: str, dropout: float) -> None:
        act = _ACTIVATIONS[activation]
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            act(),
            nn.Dropout(dropout),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            act(),
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d):  # like Keras's he_normal
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class PlainEncoder(nn.Module):
    """Pairs of convolutions, each followed by 2 x 2 max pooling. widths: of the levels, finest first.

    forward: {level0: (B, widths[0], H, W), level1: half of that size, ...}, with one more level than widths, which has
    twice the last width.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, activation: str, dropout: float) -> None:
        super().__init__()
        outputs = [*widths, 2 * widths[-1]]
        inputs = [in_channels, *outputs]
        pairs = zip(inputs, outputs, strict=False)
        self.levels = nn.ModuleList(_DoubleConvolution(*pair, activation, dropout) for pair in pairs)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {}
        for number, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if number else x)
            features[f"level{number}"] = x
        return features


class PlainDecoder(nn.Module):
    """Upsampling path: transposed convolutions, each concatenated with the encoder's level of the same size."""

    def __init__(self, widths: Sequence[int], *, activation: str, dropout: float) -> None:
        super().__init__()
        below = [*widths[1:], 2 * widths[-1]]
        pairs = zip(below, widths, strict=True)
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in pairs)
        self.levels = nn.ModuleList(_DoubleConvolution(2 * width, width, activation, dropout) for width in widths)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x = features[f"level{len(self.up)}"]
        for number in reversed(range(len(self.up))):
            x = self.levels[number](torch.cat([self.up[number](x), features[f"level{number}"]], dim=1))
        return x
