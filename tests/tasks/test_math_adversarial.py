r"""Answers that are apt to fool a verifier of mathematics, by group: what stands in the box, and the gold answer.

`RIGHT` and `WRONG` are what a careful mathematician would say. `KNOWN` is where the verifier is more lenient or
stricter than that, with the reason.
"""

import time

import pytest

from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.tasks.verifiers.math import MathVerifier

LIMIT_S = 1.5

RIGHT = {
    "kinds": [
        (r"33\frac{1}{3}\%", r"33\frac13"),
        (r"0.333\ldots", r"\frac13"),
        (r"5 > x > 2", r"2<x<5"),
        (r"2x > 4", r"x > 2"),
        (r"1 < x < 2", r"(1,2)"),
        (r"\cos 60^\circ", r"\frac{1}{2}"),
        (r"\frac{\pi}{3}", r"60^\circ"),
        (r"2\pi n, n \in \mathbb{Z}", r"2\pi n"),
        (r"\langle 1, 2 \rangle", r"(1,2)"),
        (r"sin(x)", r"\sin x"),
        (r"**18**", r"18"),
        (r"x = 11,232", r"11232"),
        (r"3*pi/2", r"\frac{3\pi}{2}"),
        (r"x**2 + 1", r"x^2+1"),
        (r"sqrt(2)/2", r"\frac{\sqrt2}{2}"),
        (r"4.5e33", r"4.5 \times 10^{33}"),
        (r"x = 2.5e-7", r"2.5 \cdot 10^{-7}"),
        (r"(1,2)", r"1 < x < 2"),
        (r"x<-2 \text{ or } x>3", r"(-\infty,-2)\cup(3,\infty)"),
        (r"\{x \mid 1 \le x < 4\}", r"[1,4)"),
        (r"-2x < -4", r"x > 2"),
        (r"2x - 6 = 0", r"x = 3"),
        (r"y = \pm\sqrt{25-x^2}", r"x^2+y^2=25"),
        (r"3\cdot\binom{5}{2}", r"30"),
        (r"3\binom{5}{2}", r"30"),
        (r"2(3)", r"6"),
        (r"4\arctan\frac15 - \arctan\frac1{239}", r"\frac{\pi}{4}"),
        (r"\sqrt{\frac{1}{n}}", r"\frac{1}{\sqrt n}"),
        (r"\text{No, it is not}", r"\text{No}"),
        (r"x = 2, x = -2", r"x = \pm 2"),
        (r"\gamma - 1", r"-1+\gamma"),
        (r"x' + 1", r"1 + x'"),
        (r"5\text{ million}", r"5000000"),
        (r"12\text{ square centimeters}", r"12\text{ cm}^2"),
        (r"x \equiv 5 \pmod{17}", r"5"),
        (r"0.1666\ldots", r"\frac16"),
        (r"\left(\frac{1}{2}, \frac{\sqrt3}{2}\right)", r"(0.5, \frac{\sqrt{3}}{2})"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"(1,2)"),
        (r"2ac", r"2ca"),
        (r"a b c", r"abc"),
        (r"{140\text{ degrees}}", r"140\text{ degrees}"),
        (r"F = m a", r"ma"),
        (r"m \cdot a", r"ma"),
        (r"x \in (-\infty,-2) \cup (3,\infty)", r"(-\infty,-2) \cup (3,\infty)"),
        (r"x \in \mathbb{R}, x \neq 2", r"(-\infty,2)\cup(2,\infty)"),
        (r"\{x \in \mathbb R : x > 2\}", r"(2,\infty)"),
        (r"\text{all real numbers}", r"\mathbb{R}"),
        (r"10:30 AM", r"10:30"),
        (r"{}^{10}C_3", r"120"),
        (r"1 1/2", r"\frac{3}{2}"),
        (r"\text{6 and 8}", r"6, 8"),
        (r"(x-1)^2 + y^2 = 4", r"x^2 - 2x + y^2 - 3 = 0"),
        (r"2(f(x)+1)", r"2f(x)+2"),
    ],
    "fractions": [
        (r"\dfrac{7}{3}", r"\frac73"),
        (r"2\frac{1}{3}", r"\frac{7}{3}"),
        (r"-2\frac{1}{3}", r"-\frac{7}{3}"),
        (r"2 \dfrac13", r"7/3"),
        (r"\frac{7}{-3}", r"-\frac{7}{3}"),
        (r"\frac 7 3", r"7/3"),
        (r"\frac7{3}", r"7/3"),
        (r"\cfrac{14}{6}", r"7/3"),
        (r"\frac{\frac{7}{2}}{\frac{3}{2}}", r"7/3"),
        (r"\frac{1}{1+\frac{1}{2}}", r"\frac{2}{3}"),
        (r"{7 \over 3}", r"7/3"),
        (r"(x+1)/2", r"\frac{x+1}{2}"),
        (r"\frac{x}{2} + \frac{1}{2}", r"\frac{x+1}{2}"),
        (r"2.5", r"2\frac12"),
        (r"\frac{2.5}{5}", r"\frac{1}{2}"),
        (r"x^{-1}", r"\frac1x"),
        (r"1/(3x)", r"\frac{1}{3x}"),
    ],
    "radicals": [
        (r"\sqrt{50}", r"5\sqrt{2}"),
        (r"\sqrt2", r"2^{1/2}"),
        (r"\sqrt[3]{54}", r"3\sqrt[3]{2}"),
        (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt{2}"),
        (r"\frac{1}{2-\sqrt3}", r"2+\sqrt{3}"),
        (r"4^{\frac{1}{3}}", r"\sqrt[3]{4}"),
        (r"\sqrt{2}\cdot\sqrt{3}", r"\sqrt{6}"),
        (r"\sqrt{x^2}", r"|x|"),
    ],
    "intervals": [
        (r"\left[0, \infty\right)", r"[0,\infty)"),
        (r"(3,4) \cup (1,2)", r"(1,2)\cup(3,4)"),
        (r"[1,2]\cup[2,3]", r"[1,3]"),
        (r"x \in [1, 2]", r"[1,2]"),
        (r"[-\sqrt{4}, 3]", r"[-2,3]"),
        (r"(-\infty, 0) \cup (0, \infty)", r"(-\infty,\infty) \setminus \{0\}"),
        (r"\mathbb{R}", r"(-\infty,\infty)"),
        ("(0, ∞)", r"(0,\infty)"),
        (r"(1 + 0.5, \infty)", r"(1.5,\infty)"),
    ],
    "sets": [
        (r"\{3, 1, 2\}", r"\{1,2,3\}"),
        (r"\{1, 1, 2\}", r"\{1,2\}"),
        (r"\left\{\frac12\right\}", r"\{0.5\}"),
        (r"\{-1, 1\}", r"\{\pm 1\}"),
        (r"\emptyset", r"\varnothing"),
        (r"\{(1,2),(3,4)\}", r"\{(3,4),(1,2)\}"),
        (r"\{\sqrt{4}, 3\}", r"\{2, 3\}"),
        (r"\{\}", r"\emptyset"),
    ],
    "tuples": [
        (r"\left(\frac{1}{2}, -3\right)", r"(0.5,-3)"),
        (r"(\sqrt{4}, 1)", r"(2,1)"),
        (r"(3,4),(1,2)", r"(1,2),(3,4)"),
        (r"(1, 2, 3)", r"(1,2,3)"),
        (r"(2x, y+1)", r"(x+x, 1+y)"),
        (r"\bigl(1, 2\bigr)", r"(1,2)"),
    ],
    "units": [
        (r"12\text{ cm}", r"12"),
        (r"12\,\mathrm{cm}", r"12\text{ cm}"),
        (r"12 \text{ square units}", r"12"),
        (r"12\text{ cm}^2", r"12"),
        (r"5 hours", r"5"),
        (r"60\text{ km/h}", r"60"),
        (r"3\pi\text{ cm}^2", r"3\pi"),
        (r"2\sqrt{3}\text{ m}", r"2\sqrt3"),
        (r"12 cm", r"12"),
        (r"10\text{ m}/\text{s}", r"10"),
        (r"9.8\text{ m/s}^2", r"9.8"),
        (r"2x\text{ cm}", r"2x"),
        (r"3t", r"3t"),
    ],
    "percentages": [
        (r"25%", r"25\%"),
        (r"25\%", r"\frac{1}{4}"),
        (r"12.5\%", r"\frac18"),
        (r"25\text{ percent}", r"25\%"),
        (r"0.25", r"25\%"),
    ],
    "currency": [
        (r"\$1{,}250.50", r"1250.5"),
        (r"\$12.00", r"12"),
        (r"12\text{ dollars}", r"\$12"),
        (r"€12", r"12"),
        (r"-\$12", r"-12"),
    ],
    "thousands": [
        (r"12{,}345{,}678", r"12345678"),
        (r"12\,345\,678", r"12345678"),
        (r"1,234.50", r"1234.5"),
        (r"-1,234", r"-1234"),
        (r"1{,}234\pi", r"1234\pi"),
        (r"10,\!000\pi", r"10000\pi"),
        (r"x = 1{,}234", r"1234"),
    ],
    "scientific": [
        (r"1.5\times10^3", r"1500"),
        (r"1.5 \cdot 10^{3}", r"1500"),
        (r"3\times10^{-4}", r"0.0003"),
        (r"6.02\cdot10^{23}", r"6.02\times10^{23}"),
        (r"1.5e3", r"1500"),
        (r"10^6", r"1000000"),
    ],
    "braces": [
        (r"{{18}}", r"18"),
        (r"\left\{{1},{2}\right\}", r"\{1,2\}"),
        (r"{x}^{2}", r"x^2"),
        (r"{\frac{{1}}{{2}}}", r"\frac12"),
        (r"\frac{{{1}}}{{{2}}}x", r"\frac{x}{2}"),
    ],
    "text": [
        (r"\text{18}", r"18"),
        (r"\mathbf{18}", r"18"),
        (r"\text{Monday}", r"Monday"),
        (r"\textbf{(B)}", r"B"),
        (r"\text{no solution}", r"\text{No solution}"),
        (r"\text{even}", r"\textbf{even}"),
    ],
    "equations": [
        (r"5 = x", r"x=5"),
        (r"y = 2x + 1", r"y=1+2x"),
        (r"2x + 1 = y", r"y=2x+1"),
        (r"y - 2x = 1", r"y=2x+1"),
        (r"2x^2 + 2y^2 = 8", r"x^2+y^2=4"),
        (r"x = \frac{10}{2}", r"5"),
        (r"f(x) = x^2", r"x^2"),
        (r"x = 2, y = 3", r"y = 3, x = 2"),
    ],
    "matrices": [
        (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\begin{pmatrix} \frac12 & 2 \end{pmatrix}", r"\begin{pmatrix} 0.5 & 2 \end{pmatrix}"),
        (r"\begin{pmatrix} 1+1 \\ x+x \end{pmatrix}", r"\begin{pmatrix} 2 \\ 2x \end{pmatrix}"),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"-2"),
    ],
    "inequalities": [
        (r"2 < x", r"x>2"),
        (r"x \ge 2", r"x \geq 2"),
        (r"x\leqslant 3", r"x\le3"),
        (r"(2, \infty)", r"x>2"),
    ],
    "functions": [
        (r"\sin\frac{\pi}{6}", r"\frac{1}{2}"),
        (r"2\sin x\cos x", r"\sin 2x"),
        (r"\sin^2 x+\cos^2 x", r"1"),
        (r"\log_2 8", r"3"),
        (r"\ln 2+\ln 3", r"\ln 6"),
        (r"e^{\ln 3}", r"3"),
        (r"\arctan 1", r"\frac{\pi}{4}"),
        (r"5!", r"120"),
        (r"\frac{6!}{3!3!}", r"20"),
        (r"\binom{5}{2}", r"10"),
        (r"{5 \choose 2}", r"10"),
        (r"\lfloor 3.7 \rfloor", r"3"),
        (r"\sum_{k=1}^{4} k", r"10"),
        (r"|{-3}|", r"3"),
        (r"\tan^{-1} 1", r"\frac{\pi}{4}"),
    ],
    "complex": [
        (r"1+2i", r"2i+1"),
        (r"i^2", r"-1"),
        (r"e^{i\pi}", r"-1"),
        (r"\sqrt{-4}", r"2i"),
        (r"(1+i)^2", r"2i"),
        (r"\frac{1}{i}", r"-i"),
    ],
    "infinity": [
        (r"+\infty", r"\infty"),
        (r"- \infty", r"-\infty"),
    ],
    "bases": [
        (r"101_{2}", r"101_2"),
        (r"2A_{16}", r"2A_{16}"),
        (r"-37_8", r"-37_{8}"),
    ],
    "degrees": [
        (r"60^\circ", r"60"),
        (r"60^{\circ}", r"60\text{ degrees}"),
        (r"60°", r"60"),
        (r"60\degree", r"60^\circ"),
    ],
    "times": [
        (r"3{:}30", r"3:30"),
        (r"3:30\text{ p.m.}", r"3:30 \text{ p.m.}"),
        (r"6:4", r"3:2"),
    ],
    "repeating": [
        (r"0.\overline{3}", r"\frac13"),
        (r"0.1\overline{6}", r"\frac16"),
        (r"0.\overline{9}", r"1"),
        (r"0.\overline{142857}", r"\frac{1}{7}"),
        (r"-1.2\bar{34}", r"-\frac{611}{495}"),
    ],
    "signs": [
        (r"\{-3, 3\}", r"\pm 3"),
        (r"3, -3", r"\pm3"),
        (r"1+\sqrt2, 1-\sqrt2", r"1\pm\sqrt2"),
        (r"x = \pm 3", r"\pm 3"),
        (r"--3", r"3"),
        (r"-(-3)", r"3"),
        (r"\mp 3", r"\pm 3"),
    ],
    "order": [
        (r"3, 1, 2", r"1, 2, 3"),
        (r"3;1;2", r"1;2;3"),
        (r"\sqrt{9}, 1", r"1, 3"),
    ],
    "other digits": [
        ("１８", r"18"),
        ("18\u00a0", r"18"),
        ("−18", r"-18"),
    ],
    "large": [
        (r"2^{100}", r"1267650600228229401496703205376"),
        (r"100!", r"100 \cdot 99!"),
        (r"10^{100}+1-10^{100}", r"1"),
    ],
}
WRONG = {
    "kinds": [
        (r"17 = 18", r"18"),
        (r"x^2 = -1", r"x^2 = -4"),
        (r"x = x + 1", r"x^2 = -4"),
        (r"12\text{ cm}", r"12\text{ m}"),
        (r"18 \text{ or seventeen}", r"18"),
        (r"3t", r"3"),
        (r"2h", r"2"),
        (r"X + 1", r"x + 1"),
        (r"\{1, 2\}", r"(1,2)"),
        (r"(2, 1)", r"x = 1, y = 2"),
        (r"f'(x)", r"f(x)"),
        (r"1,2,\ldots", r"1,2"),
        (r"3:30", r"1/10"),
        (r"0=1", r"x^2+1=0"),
        (r"5=5", r"36^{\log_{36}(216)}=216"),
        (r"x^2+1=0", r"x^2+2=0"),
        (r"x^2+1=0", r"y^2+1=0"),
        (r"(x-1)(x-2)=0", r"x-1=0"),
        (r"\frac{9^{40}}{10^{40}}", r"\frac{9^{40}+1}{10^{40}}"),
        (r"\sqrt{2}+10^{-60}", r"\sqrt{2}"),
        (r"\sin(1+10^{-200})", r"\sin 1"),
        (r"\pi r^2", r"\pi r^2 h"),
        (r"2 a", r"2 a c"),
        (r"a", r"a b c"),
        (r"3", r"3 abc"),
        (r"3 xy", r"3"),
        (r"8", r"2\binom{4}{2}"),
        (r"5", r"2(3)"),
        (r"5", r"2\lfloor 3.5 \rfloor"),
        (r"\gamma(3)", r"2"),
        (r"0.5772156649", r"\gamma"),
        (r"0", r"\frac{5}{\infty}"),
        (r"1", r"\frac{\infty}{\infty}"),
        (r"evil", r"vile"),
        (r"5\text{ million}", r"5"),
        (r"5", r"5\text{ million}"),
        (r"5 million", r"5 billion"),
        (r"12\text{ cm}", r"12\text{ cm}^2"),
        (r"12\text{ square cm}", r"12\text{ cubic cm}"),
        (r"y", r"y'"),
        (r"y'", r"y''"),
        (r"x_1 = 1, x_2 = 3", r"1, 2"),
        (r"x = 2, y = 1", r"(1,2)"),
        (r"\{2, 1\}", r"(2,1)"),
        (r"0.333", r"0.333\ldots"),
        (r"x > 2", r"x \ge 2"),
        (r"-2x > -4", r"x > 2"),
        (r"[1,2)", r"1 < x < 2"),
        (r"y < 2", r"x < 2"),
        (r"y = \sqrt{25-x^2}", r"x^2+y^2=25"),
        (r"No solution", r"No"),
        (r"yes, no", r"yes"),
        (r"x", r"X"),
        (r"m", r"M"),
        (r"\vec{a}", r"a"),
        (r"\frac{1}{2}x + 1 = 0", r"\frac{1}{2}x"),
        (r"\ln |x|", r"\ln x"),
        (r"3x^\circ - 2", r"3x - 2"),
        (r"(1, 3_1)", r"(1,3)"),
        (r"24_{1_1}", r"24_{10}"),
        (r"5:0", r"12:00"),
        (r"x\%", r"x"),
        (r"1'", r"1"),
        (r"10:30 PM", r"10:30 AM"),
        (r"\theta", r"\Theta"),
        (r"2 l", r"2 l w"),
        (r"\text{June 5}", r"\text{July 5}"),
    ],
    "fractions": [
        (r"\frac{3}{7}", r"7/3"),
        (r"2\frac{1}{3}", r"\frac{2}{3}"),
        (r"2\frac{1}{3}", r"\frac{21}{3}"),
        (r"-2\frac{1}{3}", r"-\frac{5}{3}"),
        (r"-\frac{7}{3}", r"\frac{7}{3}"),
        (r"\frac{7}{3}", r"\frac{7}{3}x"),
        (r"x+1/2", r"\frac{x+1}{2}"),
        (r"\frac{1}{2x}", r"\frac{x}{2}"),
        (r"\frac1{23}", r"\frac{12}{3}"),
        (r"7/0", r"7/3"),
        (r"\frac{7}{3", r"\frac{7}{3}"),
        (r"\frac{7}", r"7"),
    ],
    "radicals": [
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}"),
        (r"\sqrt[3]{2}", r"3\sqrt{2}"),
        (r"\sqrt{x^2}", r"x"),
        (r"2\sqrt3", r"3\sqrt2"),
        (r"-\sqrt2", r"\sqrt2"),
        (r"1.414", r"\sqrt{2}"),
        (r"\sqrt{2x}", r"\sqrt{2}x"),
        (r"\sqrt{10000000000}", r"\sqrt{10000000001}"),
        (r"|x|", r"x"),
    ],
    "intervals": [
        (r"[1,2)", r"(1,2]"),
        (r"(-\infty,2]", r"(-\infty,2)"),
        (r"(1,4)", r"(1,2)\cup(3,4)"),
        (r"(1,2)\cap(3,4)", r"(1,2)\cup(3,4)"),
        (r"[1,3]", r"[1,2]"),
        (r"(2,\infty)", r"(-\infty,2)"),
        (r"(-\infty, \infty)", r"(-\infty,0)\cup(0,\infty)"),
    ],
    "sets": [
        (r"\{1,2\}", r"\{1,2,3\}"),
        (r"\{1,2,3,4\}", r"\{1,2,3\}"),
        (r"\{1,3\}", r"\{1,2\}"),
        (r"\{0\}", r"\emptyset"),
        (r"\{12\}", r"\{1,2\}"),
        (r"\{\emptyset\}", r"\emptyset"),
    ],
    "tuples": [
        (r"(1,2)", r"(1,2,3)"),
        (r"(1,-2)", r"(1,2)"),
        (r"(3,2,1)", r"(1,2,3)"),
        (r"1", r"(1,2)"),
        (r"(1,2)", r"(1,2),(3,4)"),
        (r"(3,4),(2,1)", r"(1,2),(3,4)"),
    ],
    "units": [
        (r"13\text{ cm}", r"12"),
        (r"12\text{ cm}", r"1200"),
        (r"3\pi\text{ cm}", r"3"),
        (r"12x\text{ cm}", r"12"),
        (r"3", r"3t"),
        (r"5m", r"5n"),
        (r"x^2 + 3c", r"x^2 + 3"),
        (r"3", r"3ab"),
        (r"3\mathbf{x}", r"3"),
        (r"5\text{ feet }6\text{ inches}", r"5"),
        (r"5\text{ feet }6\text{ inches}", r"5\text{ feet }7\text{ inches}"),
    ],
    "percentages": [
        (r"2.5\%", r"25\%"),
        (r"125\%", r"25\%"),
        (r"25\%", r"2500"),
        (r"25\%", r"0.025"),
    ],
    "currency": [
        (r"\$12.50", r"12.05"),
        (r"\$12", r"1200"),
        (r"\$12 or \$13", r"12"),
        (r"\$12 \$13", r"13"),
    ],
    "thousands": [
        (r"1,2345", r"12345"),
        (r"12,34", r"1234"),
        (r"1.234", r"1234"),
        (r"1,234", r"1.234"),
        (r"1,234", r"\{1, 235\}"),
        (r"1,23,456", r"123457"),
    ],
    "scientific": [
        (r"1.5\times10^4", r"1500"),
        (r"3\times10^{-8}", r"4\times10^{-8}"),
        (r"1.5\times10^{-8}", r"1.6\times10^{-8}"),
        (r"1.5\times10^{-8}", r"0"),
        (r"0.00000001", r"10^{-9}"),
        (r"10^{-20}", r"10^{-21}"),
        (r"6.02\times10^{23}", r"6.03\times10^{23}"),
        (r"1.5^3", r"1.5\times10^3"),
        (r"0.000012", r"1.23\times10^{-5}"),
    ],
    "text": [
        (r"\text{odd}", r"\text{even}"),
        (r"\text{A}", r"B"),
        (r"\text{Tuesday}", r"\text{Monday}"),
        (r"\text{not even}", r"\text{even}"),
        (r"\text{no}", r"\text{yes}"),
        (r"\text{A and B}", r"\text{A}"),
        (r"\text{ABC}", r"\text{CBA}"),
        (r"a_1", r"a_2"),
        (r"tac", r"\text{act}"),
    ],
    "equations": [
        (r"y = 2x - 1", r"y=2x+1"),
        (r"x = y + 1", r"y=x+1"),
        (r"y = 5", r"x=5"),
        (r"x = 6", r"5"),
        (r"x^2 + y^2 = 2", r"x^2+y^2=4"),
        (r"x = 3, y = 2", r"x = 2, y = 3"),
        (r"x = 5, x = 6", r"5"),
        (r"x = 5 = 6", r"5"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&2&3\end{pmatrix}"),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ],
    "inequalities": [
        (r"x < 2", r"x>2"),
        (r"x \ge 2", r"x>2"),
        (r"x > 3", r"x>2"),
        (r"-x > 2", r"x>2"),
        (r"2 \le x \le 5", r"2<x<5"),
        (r"2 < x < 6", r"2<x<5"),
        (r"x \neq 2", r"x=2"),
        (r"x > 2", r"2"),
        (r"> 17", r"18"),
    ],
    "functions": [
        (r"\sin x", r"\cos x"),
        (r"\cos^2 x", r"\cos x^2"),
        (r"\log_2 8", r"2"),
        (r"\log_3 8", r"\log_8 3"),
        (r"\ln 2 \cdot \ln 3", r"\ln 6"),
        (r"5!", r"25"),
        (r"\binom{5}{2}", r"20"),
        (r"\sin 30", r"\frac{1}{2}"),
        (r"\lceil 3.7 \rceil", r"3"),
        (r"\sin^{-1} x", r"\frac{1}{\sin x}"),
        (r"18!", r"18"),
    ],
    "complex": [
        (r"1-2i", r"1+2i"),
        (r"-i", r"i"),
        (r"2i", r"2"),
        (r"i", r"1"),
        (r"2j", r"2i"),
        (r"\overline{z}", r"z"),
        (r"i^2", r"1"),
        (r"\sqrt{-4}", r"-2i"),
    ],
    "infinity": [
        (r"-\infty", r"\infty"),
        (r"1000000", r"\infty"),
        (r"10^{100}", r"\infty"),
        (r"\infty - \infty", r"0"),
        (r"1/0", r"\infty"),
    ],
    "bases": [
        (r"101_3", r"101_2"),
        (r"110_2", r"101_2"),
        (r"5", r"101_2"),
        (r"5_{10}", r"101_2"),
        (r"0x12", r"18"),
    ],
    "degrees": [
        (r"61^\circ", r"60^\circ"),
        (r"120^\circ", r"60^\circ"),
        (r"60^{2}", r"60"),
    ],
    "times": [
        (r"3:45", r"3:30"),
        (r"3:30", r"330"),
        (r"3:30\text{ a.m.}", r"3:30\text{ p.m.}"),
        (r"2:3", r"3:2"),
        (r"1/2/2024", r"1/3/2024"),
        (r"2024-01-02", r"2024-01-03"),
        (r"\text{4:30 a.m.}", r"\text{4:30 p.m.}"),
    ],
    "repeating": [
        (r"0.\overline{3}", r"0.3"),
        (r"0.\overline{12}", r"\frac{12}{100}"),
        (r"0.3", r"\frac13"),
        (r"0.\overline{12}", r"0.1\overline{2}"),
    ],
    "signs": [
        (r"\pm 3", r"3"),
        (r"\pm 3", r"-3"),
        (r"3", r"\pm 3"),
        (r"\pm 2", r"\pm 3"),
        (r"-3^2", r"9"),
    ],
    "order": [
        (r"1, 2", r"1, 2, 3"),
        (r"1, 2, 4", r"1, 2, 3"),
        (r"1, 2, 3", r"1"),
        (r"123", r"1, 2, 3"),
    ],
    "large": [
        (r"2^{100}", r"1267650600228229401496703205377"),
        (r"10^{30}+1", r"10^{30}"),
        (r"100!", r"99!"),
    ],
    "several candidates": [
        (", ".join(map(str, range(1, 31))), r"18"),
        (r"\{" + ", ".join(map(str, range(1, 31))) + r"\}", r"18"),
        (r"17 or 18", r"18"),
        (r"17, 18", r"18"),
        (r"18, 17", r"18"),
        (r"18; 17", r"18"),
        (r"17 18", r"18"),
        (r"18 \quad 17", r"18"),
        (r"18 \\ 17", r"18"),
        (r"18 \text{ or } 17", r"18"),
        (r"\text{either } 17 \text{ or } 18", r"18"),
        (r"18 \text{ maybe } 19 \text{ dollars}", r"18"),
        (r"18 \text{ maybe } 19", r"18"),
        (r"17\text{ (or really 18)}", r"18"),
        (r"18\text{ (or really 17)}", r"18"),
        (r"18 \lor 17", r"18"),
        (r"x = 17, x = 18", r"18"),
        (r"x = 17 \text{ or } x = 18", r"18"),
        (r"\neq 18", r"18"),
        (r"\text{not } 18", r"18"),
        (r"17 \fbox{18}", r"18"),
        (r"[1, 100]", r"18"),
        (r"\mathbb{N}", r"18"),
        (r"n", r"18"),
        (r"18 \text{17}", r"18"),
        (r"18~17", r"18"),
        (r"17-18", r"18"),
        (r"18-17", r"18"),
        (r"17|18", r"18"),
        (r"17 & 18", r"18"),
        ("17\n18", r"18"),
        (r"(18, 18)", r"18"),
        (r"\min(17, 18)", r"18"),
        (r"17.5 \text{ to } 18.5", r"18"),
    ],
    "injections": [
        (r"__import__('os').system('id')", r"18"),
        (r"__import__('sys').exit(0)", r"18"),
        (r"\input{/etc/passwd}", r"18"),
        (r"\write18{id} 18", r"18"),
        ("17\x00 18", r"18"),
        (r"17$. The final answer is $18$. I hope", r"18"),
        (r"17$ final answer is $18$ ok", r"18"),
        (r"17\) answer: \(18\)", r"18"),
        (r"17 \} 18", r"18"),
        (r"18 \} 17", r"18"),
        (r"18 % 17", r"18"),
        (r"\def\x{18}\x", r"18"),
        (r"\phantom{17}18x", r"18"),
        ("1О8", r"108"),  # a Cyrillic O
        ("l8", r"18"),
        ("\u202e81", r"18"),
        ("\u0445 + 1", r"x + 1"),  # a Cyrillic x
        (r"gold", r"18"),
        (r"None", r"18"),
        (r"True", r"1"),
        (r"\boldsymbol{}", r"18"),
        (r"\text{}", r"18"),
        (r"@@@", r"18"),
        (r"17 final answer is [18] ok", r"18"),
    ],
}
KNOWN = [
    # An equation is read as its right side.
    (r"2x + 3 = 5", r"5", True),
    (r"x \approx 18", r"18", True),
    # A term that is not evaluated passes for its value.
    (r"17 + 1", r"18", True),
    (r"\max(17, 18)", r"18", True),
    (r"\frac{d}{dx} x^2", r"2x", True),
    (r"\int_0^1 x dx", r"\frac12", True),
    # Decimals that are right to six places pass for the exact number.
    (r"1.414214", r"\sqrt{2}", True),
    (r"2.0000001", r"2", True),
    # A percentage may be meant as a factor or as a number of percent.
    (r"25\%", r"25", True),
    # Units are dropped, not converted; two that are known, and differ as words, make answers differ.
    (r"12\text{ cents}", r"\$12", True),
    # A base is compared only if both have one.
    (r"101", r"101_2", True),
    (r"101_2", r"101", True),
    (r"5_{10}", r"y = 5", True),
    # Pairs and lists of values for letters are one; so are repeated members.
    (r"x = 1, y = 2", r"(1,2)", True),
    (r"1, 1, 2", r"1, 2", True),
    (r"1", r"1, 1", True),
    (r"\{18\}", r"18", True),
    # A bare comma before three digits is a thousands separator in plain numbers only.
    (r"1,234x", r"1234x", False),
    # Not LaTeX that math-verify reads.
    (r"\textcolor{red}{18}", r"18", False),
    (r"\underline{18}", r"18", False),
    (r"\text{The answer is } 18", r"18", False),
    (r"eighteen", r"18", False),
    (r"18,", r"18", False),
    ("√2", r"\sqrt{2}", False),
    ("x²", r"x^2", False),
    ("18\u200f", r"18", False),
]

# Candidates that floating point, or a comparison of solutions, could make equal to anything.
UNIVERSAL = [
    r"1.0\cdot 10^{40} - 10^{40}",
    r"10^{40}(1.0-\sin^2 1-\cos^2 1)",
    r"0.5 + 10^{17} - 10^{17}",
    r"10^{100}+1-10^{100}",
    r"x = 0.5 + 10^{17} - 10^{17}",
    r"10^{150}(\sqrt{3+2\sqrt{2}}-1-\sqrt{2})",
    r"\{0.5 + 10^{17} - 10^{17}, 2\}",
    r"y = x + 0.5 + 10^{17} - 10^{17}",
    r"1.0\cdot 10^{40}x - 10^{40}x",
    r"0=0",
    r"x=x",
    r"\infty-\infty",
    r"\frac{0}{0}",
    r"\text{nan}",
    r"\mathbb{R}",
]
GOLDS = [
    *(r"18", r"0.025", r"1.5^3", r"\sqrt{2}", r"\frac{7}{3}", r"2^{10}", r"x+5", r"3x", r"x=5", r"y=x+1.5", r"2+3i"),
    *(r"\{1.5,2\}", r"(\sqrt{2},2)", r"[1,2]", r"x<3", r"\begin{pmatrix}1.5\\2\end{pmatrix}", r"12345678901234567890"),
]

# Whole texts of a final turn, the gold answer, and whether it passes.
TEXTS = [
    (r"\boxed{17} and, better, \boxed{18}", "18", True),
    (r"\boxed{18} and, better, \boxed{17}", "18", False),
    (r"\boxed{17}, \boxed{18}", "17, 18", False),
    (r"\boxed{\boxed{18}}", "18", True),
    (r"\boxed{18}}", "18", True),
    (r"{\boxed{18}", "18", True),
    (r"\boxed{{18}", "18", False),
    (r"\boxed{18", "18", False),
    (r"\boxed18", "18", False),
    (r"18", "18", False),
    (r"**18**", "18", False),
    (r"#### 18", "18", False),
    (r"The answer is $18$.", "18", False),
    (r"boxed{18}", "18", False),
    (r"\text{boxed}{18}", "18", False),
    (r"\fbox{18}", "18", False),
    (r"<answer>18</answer>", "18", False),
    (r"\boxed{17}<answer>18</answer>", "18", False),
    (r"\boxed{\text{see above: } 18 \boxed{}}", "18", False),
    (r"\boxed{}\boxed{18}", "18", True),
    (r"\boxed{18}\boxed{}", "18", False),
    ("\\boxed\n{18}", "18", True),
    ("\\boxed{\n18\n}", "18", True),
]

# Candidates on which a symbolic checker hangs, or eats up memory; the gold answer is x + 5.
HEAVY = {
    "tower": r"9^{9^{9^9}}",
    "power": r"2^{10^{10}}",
    "factorial": r"1000000!",
    "factorials": r"((9!)!)!",
    "binomial": r"\binom{10^9}{5 \cdot 10^8}",
    "expansion": r"(x+y+z+1)^{1000000}",
    "sum": r"\sum_{k=1}^{1000000000} \frac{1}{k}",
    "integral": r"\int_0^1 x^{x^{x}} dx",
    "sine": r"\sin(10^{10^{10}})",
    "floor": r"\lfloor \sqrt{2} \cdot 10^{10^{8}} \rfloor",
    "symbolic tower": r"x^{x^{x^{x^{x^{x^{x^{x}}}}}}}",
    "brackets": "(" * 400 + "1" + ")" * 400,
    "braces": "{" * 900 + "1" + "}" * 900,
    "roots": r"\sqrt{2+" * 100 + "2" + "}" * 100,
    "continued fraction": r"\frac{1}{1+" * 80 + "1" + "}" * 80,
    "long sum": "1" + "+1" * 900,
    "long sum of roots": "+".join(rf"\sqrt{{{k}}}" for k in range(2, 160)),
    "long product": "".join(f"(x+{k})" for k in range(1, 220)),
    "digits": "9" * 1900 + "x",
    "commas": "1," * 900 + "1",
    "dollars": "$ " * 900,
    "texts": r"\text{a}" * 240,
    "equals": "x=" * 900 + "5",
    "minus signs": "-" * 1900 + "5",
}


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(timeout_s=10, workers=1) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def hasty():
    with MathVerifier(timeout_s=LIMIT_S, workers=1) as verifier:
        yield verifier


def verdict(verifier: MathVerifier, text: str, answer: str) -> Verdict:
    return verifier.verify_many([text], [Problem("p", "?", answer)])[0]


def flat(groups: dict[str, list[tuple[str, str]]]) -> list:
    return [pytest.param(*pair, id=f"{group}: {pair[0][:40]!r}") for group, pairs in groups.items() for pair in pairs]


@pytest.mark.parametrize(("candidate", "answer"), flat(RIGHT))
def test_right_answers_pass(verifier, candidate, answer):
    assert verdict(verifier, f"\\boxed{{{candidate}}}", answer).passed


@pytest.mark.parametrize(("candidate", "answer"), flat(WRONG))
def test_wrong_answers_fail(verifier, candidate, answer):
    assert not verdict(verifier, f"\\boxed{{{candidate}}}", answer).passed


@pytest.mark.parametrize(("candidate", "answer", "passed"), KNOWN)
def test_known_differences_from_a_mathematician(verifier, candidate, answer, passed):
    assert verdict(verifier, f"\\boxed{{{candidate}}}", answer).passed == passed


@pytest.mark.parametrize(("text", "answer", "passed"), TEXTS)
def test_which_box_counts(verifier, text, answer, passed):
    assert verdict(verifier, text, answer).passed == passed


@pytest.mark.parametrize("candidate", UNIVERSAL)
def test_no_answer_passes_for_every_gold_answer(verifier, candidate):
    problems = [Problem(str(i), "?", answer) for i, answer in enumerate(GOLDS)]
    verdicts = verifier.verify_many([f"\\boxed{{{candidate}}}"] * len(GOLDS), problems)
    assert [p.answer for p, v in zip(problems, verdicts, strict=True) if v.passed] == []


@pytest.mark.parametrize("candidate", HEAVY.values(), ids=HEAVY)
def test_heavy_answers_fail_within_the_limit(hasty, candidate):
    verdict(hasty, r"\boxed{x + x}", "2x")  # a process that was killed takes its time to come back
    start = time.monotonic()
    assert not verdict(hasty, f"\\boxed{{{candidate}}}", "x + 5").passed
    assert time.monotonic() - start < LIMIT_S + 3


@pytest.mark.parametrize(
    ("answers", "classes"),
    [
        (["0.5", r"\frac12", "1", "50\\%", ".50"], [0, 0, 1, 0, 0]),
        ([r"2\sqrt{3}", r"\sqrt{12}", "x + 1", r"\sqrt{13}", "1+x", r"\sqrt{12}"], [0, 0, 1, 2, 1, 0]),
        (["x = 5", "5", "5.0", "6"], [0, 0, 0, 1]),
        (["@@@ 1", "1", "@@@ 1", "@@@  1", "@@@ 2"], [0, 1, 0, 0, 2]),
        (["1" * 2001, "1" * 2001, "2" * 2001, "1"], [0, 0, 1, 2]),
        (["", "", "1"], [0, 0, 1]),
        (["(1, 2)", r"\left(1,2\right)", "(2, 1)"], [0, 0, 1]),
        ([], []),
    ],
)
def test_classes(verifier, answers, classes):
    assert verifier.classes(answers, Problem("p", "?", "")) == classes


def test_plain_numbers_are_told_apart_without_a_process():
    with MathVerifier() as fresh:
        assert fresh.classes(["1", "2", "1.0", "3"] * 8, Problem("p", "?", "")) == [0, 1, 0, 2] * 8
        assert fresh._pool.pids() == []


def test_an_answer_that_hangs_is_alone_and_spoils_no_other_class(hasty):
    problem = Problem("p", "?", "2")
    tower, sums = HEAVY["tower"], [r"\sqrt{8}", r"2\sqrt{2}", r"\sqrt{2} + \sqrt{2}"]
    start = time.monotonic()
    assert hasty.classes([tower, sums[0], tower, sums[1], "2"], problem) == [0, 1, 0, 1, 2]
    assert hasty.classes([sums[0], tower, sums[1], sums[2]], problem) == [0, 1, 0, 0]
    assert time.monotonic() - start < 10 * LIMIT_S + 10
