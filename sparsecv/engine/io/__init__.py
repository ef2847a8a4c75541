# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in and out: STAR tables, MRC maps and stacks, the particle table, atomic writes."""
