# SPDX-License-Identifier: GPL-3.0-or-later
"""

@article{Luo2019,
  title = {Improving the resolution of Cryo-EM single particle analysis},
  author = {Luo, Zhenwei},
  journal = {arXiv},
  year = {2019},
  pages = {1905.13408},
  url = {https://arxiv.org/abs/1905.13408}
}

@article{Luo2021,
  title = {Sparseness and smoothness regularized imaging for improving the resolution of cryo-EM
           single-particle reconstruction},
  author = {Luo, Zhenwei and Campos-Acevedo, Adam A. and Lv, Longfei and Wang, Qinghua and Ma, Jianpeng},
  journal = {Proceedings of the National Academy of Sciences},
  volume = {118},
  number = {2},
  pages = {e2013756118},
  year = {2021},
  doi = {10.1073/pnas.2013756118}
}

@article{Pintilie2020,
  title = {Measurement of atom resolvability in cryo-EM maps with Q-scores},
  author = {Pintilie, Grigore and Zhang, Kaiming and Su, Zhaoming and Li, Shanshan and Schmid, Michael F. and
            Chiu, Wah},
  journal = {Nature Methods},
  volume = {17},
  number = {3},
  pages = {328--334},
  year = {2020},
  doi = {10.1038/s41592-020-0731-1}
}

@article{Punjani2020,
  title = {Non-uniform refinement: adaptive regularization improves single-particle cryo-EM reconstruction},
  author = {Punjani, Ali and Zhang, Haowei and Fleet, David J.},
  journal = {Nature Methods},
  volume = {17},
  number = {12},
  pages = {1214--1221},
  year = {2020},
  doi = {10.1038/s41592-020-00990-8}
}

@article{Scheres2012,
  title = {RELION: Implementation of a Bayesian approach to cryo-EM structure determination},
  author = {Scheres, Sjors H. W.},
  journal = {Journal of Structural Biology},
  volume = {180},
  number = {3},
  pages = {519--530},
  year = {2012},
  doi = {10.1016/j.jsb.2012.09.006}
}

@article{Zivanov2018,
  title = {New tools for automated high-resolution cryo-EM structure determination in RELION-3},
  author = {Zivanov, Jasenko and Nakane, Takanori and Forsberg, Bjorn O. and Kimanius, Dari and Hagen, Wim J. H. and
            Lindahl, Erik and Scheres, Sjors H. W.},
  journal = {eLife},
  volume = {7},
  pages = {e42166},
  year = {2018},
  doi = {10.7554/eLife.42166}
}

@article{Zivanov2020,
  title = {Estimation of high-order aberrations and anisotropic magnification from cryo-EM data sets in RELION-3.1},
  author = {Zivanov, Jasenko and Nakane, Takanori and Scheres, Sjors H. W.},
  journal = {IUCrJ},
  volume = {7},
  number = {2},
  pages = {253--267},
  year = {2020},
  doi = {10.1107/S2052252520000081}
}

"""
