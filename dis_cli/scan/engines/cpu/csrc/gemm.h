// Small matrix products whose operands are in the cache. Included once per instruction set, after vec.h.

// out (rows, columns) = a (rows, inner) times b (inner, columns), or added to it. Any strides for `a`; rows of `b` and of
// `out` are contiguous, and those of `b` are readable up to the next multiple of WIDTH.
struct Product {
    int64_t rows, inner, columns;
    const float* a;
    int64_t a_row, a_inner;
    const float* b;
    int64_t b_row;
    float* out;
    int64_t out_row;
    bool add;
};

// ROWS rows of VECTORS * WIDTH columns, of which `count` exist; the sums stay in registers.
template <int ROWS, int VECTORS, bool FULL>
INLINE void product_tile(const Product& p, int64_t row, int64_t column, int64_t count) {
    Vec sum[ROWS][VECTORS];
    const auto rest = [count](int v) { return FULL ? WIDTH : count - v * WIDTH; };
    float* out = p.out + row * p.out_row + column;
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v)
            sum[i][v] = p.add ? load_part(out + i * p.out_row + v * WIDTH, rest(v)) : splat(0.0f);
    const float *a = p.a + row * p.a_row, *b = p.b + column;
    for (int64_t k = 0; k < p.inner; ++k, a += p.a_inner, b += p.b_row) {
        Vec b_k[VECTORS];
        for (int v = 0; v < VECTORS; ++v) b_k[v] = load(b + v * WIDTH);
        for (int i = 0; i < ROWS; ++i)
            for (int v = 0; v < VECTORS; ++v) sum[i][v] += a[i * p.a_row] * b_k[v];
    }
    for (int i = 0; i < ROWS; ++i)
        for (int v = 0; v < VECTORS; ++v) store_part(out + i * p.out_row + v * WIDTH, sum[i][v], rest(v));
}

template <int VECTORS, bool FULL>
INLINE void product_columns(const Product& p, int64_t column, int64_t count) {
    int64_t row = 0;
    for (; row + 6 <= p.rows; row += 6) product_tile<6, VECTORS, FULL>(p, row, column, count);
    for (; row + 2 <= p.rows; row += 2) product_tile<2, VECTORS, FULL>(p, row, column, count);
    if (row < p.rows) product_tile<1, VECTORS, FULL>(p, row, column, count);
}

static void multiply(const Product& p) {
    int64_t column = 0;
    for (; column + 2 * WIDTH <= p.columns; column += 2 * WIDTH) product_columns<2, true>(p, column, 2 * WIDTH);
    const int64_t count = p.columns - column;
    if (count > WIDTH)
        product_columns<2, false>(p, column, count);
    else if (count)
        product_columns<1, false>(p, column, count);
}
