# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA sources on the CPU: a host shim that executes them and a fake CuPy that launches them."""
