# SPDX-License-Identifier: GPL-3.0-or-later
"""Images made by RELION, to be compared with ours, and what made them."""
