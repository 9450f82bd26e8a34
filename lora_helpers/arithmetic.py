"""On which device and in which arithmetic a `Classifier` computes: float32, bfloat16, or int8 on a CPU.

For int8, oneDNN's product is taken: torchao's is forty times as slow as float32 where a processor lacks VNNI, and ONNX
Runtime, which `bench` puts beside it, needs up to a minute to translate a model first.
"""

import logging

import torch

from .environment import WITHOUT_GPU, best_device, has_fast_bfloat16
from .errors import InputError, first_line

LARGEST_WEIGHT = 63  # 7 bits: AVX2 adds two products in 16 bits, 2 * 255 * 63 = 32,130 of 32,767
LARGEST_INPUT = 255  # 8 bits


def find_device(name: str | torch.device | None, precision: str) -> torch.device:
    """The device called `name`, InputError if it is not here; if None the best there is, which for int8 is the CPU."""
    try:
        device = torch.device(name or ("cpu" if precision == "int8" else best_device()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch built without CUDA asserts
        instead = "leave it out for the best there is" if name else WITHOUT_GPU
        raise InputError(f"device is {name or best_device()}: {first_line(error)}; {instead}") from error
    if precision == "int8" and device.type != "cpu":
        raise InputError(f"precision is int8 and device {device}: int8 is for the CPU; use bfloat16 there")
    return device


def set_precision(model: torch.nn.Module, precision: str, device: torch.device) -> torch.nn.Module:
    """`model`, changed in place, so that it computes in `precision` on `device`."""
    if precision == "bfloat16" and not has_fast_bfloat16(device.type):
        logging.getLogger(__name__).warning("this machine only emulates bfloat16, slowly; float32 is faster")
    try:
        model = model.to(device, torch.bfloat16 if precision == "bfloat16" else None)
    except torch.OutOfMemoryError as error:  # of a GPU
        raise InputError(f"{first_line(error)}; {WITHOUT_GPU}") from error
    if precision == "int8":  # only now, since the weights that it takes to pieces must be on the CPU
        try:
            for parent in list(model.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, torch.nn.Linear):
                        setattr(parent, name, Int8Linear(child))
        except (RuntimeError, AttributeError) as error:
            fault = f"torch has no int8 product for this processor ({first_line(error)})"
            raise InputError(f"{fault}; use float32") from error
    return model


class Int8Linear(torch.nn.Module):
    """A linear layer in int8: a scale for each output of its weights, and a range for each token of its inputs.

    One range for all tokens would do for the small base. At roberta-base's size a few tokens carry values so large that
    those of the others would be rounded away.
    """

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scales = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST_WEIGHT  # float32 [outputs]
        self.weight = (weight / self.scales[:, None]).round().to(torch.int8)  # [outputs, inputs]
        self.sums = self.weight.sum(dim=1) * self.scales  # float32 [outputs]: what inputs of 1 would give
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.onednn.qlinear_prepack(self.weight, None)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "packed"}  # made for this processor

    def __setstate__(self, state):
        self.__dict__.update(state, packed=torch.ops.onednn.qlinear_prepack(state["weight"], None))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32 [..., inputs] to float32 [..., outputs]."""
        low, high = inputs.amin(dim=-1, keepdim=True).clamp(max=0), inputs.amax(dim=-1, keepdim=True).clamp(min=0)
        step = ((high - low) / LARGEST_INPUT).clamp(min=1e-12)
        rounded = (inputs * (1 / step)).add_(0.5 - low / step).to(torch.uint8)  # `to` cuts off
        # The inputs' scale and zero point are applied below. After the bias: those of the outputs, their dtype, no post-op.
        product = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, 0, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product.mul_(step).addcmul_(low, self.sums).add_(self.bias)
