"""What the state-space operators share: vectors in C++, codes with scales, and checks of operands.

An operand is float, or int8 codes with a scale: value = code · scale. uint8 codes have zero point 128, which is what
the int8 matmuls of the CPU read. A scale is float32 and holds one element, or a number of them that divides the
operand's channels (H · P with heads; the groups of B and C): neighbours share one. Codes given for A stand for A_log:
A = -exp(code · scale).
"""
