"""torch's optimizers without its compiler, which they import for their first update: two seconds of each training."""

import inspect

import torch


class Uncompiled:
    """The methods of a torch optimizer that are kept from the compiler, as they are without that guard. A model may be
    compiled all the same; its updates never are."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Uncompiled, torch.optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
