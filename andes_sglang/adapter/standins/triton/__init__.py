from andes_absent import stand_in

__version__ = "0.0.0"


def cdiv(a, b):
    return -(-a // b)


def next_power_of_2(n):
    return 1 << max(0, n - 1).bit_length()


stand_in("triton", cdiv=cdiv, next_power_of_2=next_power_of_2)

import triton.backends  # noqa: E402

triton.backends.backends = {}
