# SPDX-License-Identifier: GPL-3.0-or-later
"""Refinement: expectation, maximisation, regularisers, schedule, and the loop over them."""
