"""The papers behind the methods, as BibTeX, for whoever publishes what the methods made."""

RIA = """@inproceedings{zhang2024plug,
  title     = {Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models},
  author    = {Zhang, Yingtao and Bai, Haoli and Lin, Haokun and Zhao, Jialin and Hou, Lu
               and Cannistraci, Carlo Vittorio},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year      = {2024}
}"""

# By the name that a method has in its table: SCORES, SEARCHES, RECONSTRUCTIONS, QUANTIZATIONS or METHODS; "reap" is
# that of --experts. What is not here is RIA's, Secateur's own, or everyone's.
PAPERS = {
    "wanda": """@inproceedings{sun2024wanda,
  title     = {A Simple and Effective Pruning Approach for Large Language Models},
  author    = {Sun, Mingjie and Liu, Zhuang and Bair, Anna and Kolter, J. Zico},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year      = {2024}
}""",
    "sparsegpt": """@inproceedings{frantar2023sparsegpt,
  title     = {{SparseGPT}: Massive Language Models Can Be Accurately Pruned in One-Shot},
  author    = {Frantar, Elias and Alistarh, Dan},
  booktitle = {Proceedings of the 40th International Conference on Machine Learning},
  year      = {2023}
}""",
    "admm": """@inproceedings{meng2024alps,
  title     = {{ALPS}: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models},
  author    = {Meng, Xiang and Behdin, Kayhan and Wang, Haoyue and Mazumder, Rahul},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}""",
    "tune": """@article{guo2024ebft,
  title   = {{EBFT}: Effective and Block-Wise Fine-Tuning for Sparse {LLMs}},
  author  = {Guo, Song and Wu, Fan and Zhang, Lei and Zheng, Xiawu and Zhang, Shengchuan and Chao, Fei and Shi, Yiyu
             and Ji, Rongrong},
  journal = {arXiv preprint arXiv:2402.12419},
  year    = {2024}
}""",
    "greedy": """@inproceedings{pool2021channel,
  title     = {Channel Permutations for {N:M} Sparsity},
  author    = {Pool, Jeff and Yu, Chong},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}""",
    "gptq": """@inproceedings{frantar2023gptq,
  title     = {{OPTQ}: Accurate Quantization for Generative Pre-trained Transformers},
  author    = {Frantar, Elias and Ashkboos, Saleh and Hoefler, Torsten and Alistarh, Dan},
  booktitle = {The Eleventh International Conference on Learning Representations},
  year      = {2023}
}""",
    "awq": """@inproceedings{lin2024awq,
  title     = {{AWQ}: Activation-aware Weight Quantization for On-Device {LLM} Compression and Acceleration},
  author    = {Lin, Ji and Tang, Jiaming and Tang, Haotian and Yang, Shang and Chen, Wei-Ming and Wang, Wei-Chen
               and Xiao, Guangxuan and Dang, Xingyu and Gan, Chuang and Han, Song},
  booktitle = {Proceedings of Machine Learning and Systems},
  year      = {2024}
}""",
    "taylor": """@inproceedings{ma2023llmpruner,
  title     = {{LLM-Pruner}: On the Structural Pruning of Large Language Models},
  author    = {Ma, Xinyin and Fang, Gongfan and Wang, Xinchao},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023}
}""",
    "reap": """@inproceedings{lasby2026reap,
  title     = {{REAP} the Experts: Why Pruning Prevails for One-Shot {MoE} Compression},
  author    = {Lasby, Mike and Lazarevich, Ivan and Sinnadurai, Nish and Lie, Sean and Ioannou, Yani
               and Thangarasa, Vithursan},
  booktitle = {The Fourteenth International Conference on Learning Representations},
  year      = {2026}
}""",
    "depth": """@article{men2024shortgpt,
  title   = {{ShortGPT}: Layers in Large Language Models are More Redundant Than You Expect},
  author  = {Men, Xin and Xu, Mingyu and Zhang, Qingyu and Wang, Bingning and Lin, Hongyu and Lu, Yaojie
             and Han, Xianpei and Chen, Weipeng},
  journal = {arXiv preprint arXiv:2403.03853},
  year    = {2024}
}""",
}
