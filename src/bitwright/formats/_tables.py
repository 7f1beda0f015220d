"""Tables of the trellis code, one a rate: values int8 by window, trained on Gaussian numbers.

`STEPS` is the step of the values for numbers of standard deviation 1. Made by benchmarks/trellis_tables.py, with mean
squared errors 0.0014 at 5.33 bits, 0.0063 at 4, 0.0175 at 3.2, 0.0351 at 2.67, 0.0572 at 2.29, 0.0810 at 2, 0.1367 at
1.6, 0.1916 at 1.33, 0.2439 at 1.14 and 0.2908 at 1 bit (the best scalar code of 2 bits has 0.1175; none can have less
than 4^-bits).
"""

from __future__ import annotations

STEPS = {
    12: 0.028700,
    16: 0.027553,
    20: 0.025905,
    24: 0.024806,
    28: 0.024386,
    32: 0.023300,
    40: 0.020944,
    48: 0.019772,
    56: 0.017916,
    64: 0.017189,
}

TABLES = {
    12: (
        "a62ff2def8fd247512079a0f28c8163a33e410e8d5ee0901c540e00cdbcec21a"
        "d02220ffe304321e59f5cb2af0343c4a2dd9beec0b26d3143717e9f91cae0205"
        "fe38cf252729e1e6c9c0f6ba2113182e110d00d703fa45da3edd1defb5d20888"
        "d81be5ccf4ebdcf7dfd62b231551fc0a19f330d1eae20ef106e7ed35fb1f64c4"
    ),
    16: (
        "f643d7f336dbdfee2c19ba0de9ce01fdcbd40e1a0526e7333de0ffdcf2ecf9b8"
        "ef001c46233127f7deea0ae3d2f43914e5a7eb280b1f08d902f837d0150fc552"
        "25f1d1321b4f3020fe102b3be4c2160cd6cc17c363e61d29093524fa2d3f1103"
        "bd22f512fb18d5e1492ec604ddaef0ca1e06e29bc8fc75d313da58ed8807b3e8"
    ),
    20: (
        "ccfb19a42fc2e551f446650a032d1dd51b11fdf0e3390727e12810ed371c5dfa"
        "f521ca300cd2a8de2901badaf20de71ae6dbeecdb32512feb8e4d31623493304"
        "310f550045e222ef3df805c4d4b088ead7ecdf43f9027715189beb26c0dccf3c"
        "08360b1ed6f6f3c6d8cbf7ff17e80e2a4fc72ee92013d90609142438e0f1fcb9"
    ),
    24: (
        "145aeec300d91d30fe11092af02b4415d2ec19022ce858d51203f2a0cd4126df"
        "ca314708671aafe9d6d7bee417f9ed04f41bd035b80ae58827eb420ce018c4fa"
        "05db2eef16f8ce1eb7f30ecf01e21c3b21fb0ddaf1402f0ff5bd9d542306e1cb"
        "360bdc1fe6b9fd4e374c2413a8d107eae3c5fc77d82810f6e722d3f73ab2ff20"
    ),
    28: (
        "c73dfd1d58d50de40725f226143bceef31f6d0122b0feac9b9f5dc3f38feadd7"
        "1bd3b7f7d4ab600a46e30be5eb233713f31c0ed8e05cbffb16c432f8b6ddfa21"
        "ffed41ba2410de9f2915da0205cb18ec11cde830e633031af92e56cadb177843"
        "47081ee709f01f39e90620cc2afceec1d22ff10c00df224ed9018a19f4a02704"
    ),
    32: (
        "0131e310e1f708c859fc28bb9d03d83fc94c1eed6730e90e32e6c50906d32d3d"
        "d4f812b2258ede021d27fddc26e40cf9f000c72cf3ca1635b417f1e539eeeb1c"
        "29d6b3f64d13952bf4d0153a56cbf2194421e70a180f55c60baf14e2e02accfe"
        "ec11463404d52eefc478df07fb2233d11adbffd7d2fab7f5e8523823b5050ddd"
    ),
    40: (
        "f1fc21b65ef21dd493010dbd27e5205fd1e84a0c45d22204c4ebf41c4f25d306"
        "a93ee60bb1022cdfd52aec0700bced28fb461bcd2dea081f4b0abe29ce13f5e0"
        "5a09e235e32bf91423f8c939f319d6cf240eabee0337c6e40f3866e9f6a010d0"
        "1ecb51f01578e12605c82efaba4411fdb9ffef3bda16e7a6f78b17ca12dd363c"
    ),
    48: (
        "fde22a9647f117d4aa0e1dc31fe31858dfaf600c2fdbff30c0f2ee154b13bb07"
        "c148f30ac6002dd8e016e520069ce72e096921c844ed0ffe3f03bf2bc90bf9eb"
        "5f10e841d334fc2924ecbd25e61eccf71928caeffb40b9f404384de9f8b008c2"
        "12dc3df50578cd141add1be4a64923eacb01f03ed511e18bfab61cd90dda4a2c"
    ),
    56: (
        "3f5c15e0c30b25c82be69c0710d496fdefd2d53909d01126fa3cdbc1f536d922"
        "f8923de312cc17fe2eacec1cf00e5abb30cd02a637ffed4efbd6d73427e431f1"
        "e703d31e0dbede35e22068c4b90f0552181338e14b0cc5e889ea1a4f19dc23da"
        "2ff2ee46f61dadf7bc781fdd28c2eb21bd166d06dfa13bf3610a1bf4bf24e94a"
    ),
    64: (
        "17b718e021e1e4346f042edbd52a2fd246efde0d31881ed05af2f8c3e7669912"
        "9cff27e563cbd92819241bd3f6d60b9d0030fbf113c4105b09441fe6ce23eb29"
        "e85dc522df261ae205acd7392bede31cea084593c90ed82cbf54061116b82dc6"
        "020cc049f3205cdcecddcf1d6714a30a01da470fc832d4fcb9feee3625e94abd"
    ),
}
