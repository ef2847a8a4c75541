# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run shows: progress on the terminal, and figures."""
