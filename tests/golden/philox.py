"""The noise of dropout: Philox 4x32-10 (Salmon et al. 2011), in whole numbers.

Element [b, h, i, j] of [batch, num_heads, q_len, kv_len] is kept when word j % 4 of the noise of counter
(j / 4, i, b * num_heads + h, 0) and of the seed's two halves as the key is at least probability * 2^32.
"""

import torch

WORD = 0xFFFFFFFF


def philox(counter, key):
    a, b, c, d = counter
    k, l = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k, right & WORD, (left >> 32) ^ d ^ l, left & WORD
        k, l = (k + 0x9E3779B9) & WORD, (l + 0xBB67AE85) & WORD
    return a, b, c, d


def kept(shape, probability, seed):
    batch, num_heads, q_len, kv_len = shape
    key = (seed & WORD, seed >> 32)
    threshold = int(probability * 2**32)

    def keep(head, i, j):
        return philox((j // 4, i, head, 0), key)[j % 4] >= threshold

    rows = [[keep(head, i, j) for j in range(kv_len)] for head in range(batch * num_heads) for i in range(q_len)]
    return torch.tensor(rows).reshape(shape)


# kat_vectors of the authors' library Random123
assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
assert philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)) == (
    0xD16CFE09,
    0x94FDCCEB,
    0x5001E420,
    0x24126EA1,
)
