// Everything that is compiled once per instruction set, in that set's namespace.
#include "vec.h"
#include "scan.h"
#include "wide.h"
#include "conv.h"
#include "gemm.h"
#include "mixer.h"
#include "norm.h"

const InstructionSet SET = {WIDTH,        prepare_A,     scan_forward,  scan_backward, prepare_conv,
                            conv_forward, conv_backward, prepared_size, prepare_mixer, mixer_forward, mixer_backward,
                            norm_forward, norm_backward};
