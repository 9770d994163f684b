/* LSQ between two biases, and StatsQ, in one pass over memory: see kernels.py; formulas are in
   biased_lsq.py and statsq.py.

   Every operation rounds once, in the order in which torch's operators do it, so results equal
   theirs to the bit. Comparisons are written so that a NaN passes through, as torch lets it. */

#include <math.h>
#include <stdint.h>

/* x is seen as runs of entries that lie side by side and do not cross a period of the biases.
   width, stride: entries of a row of x, and between the beginnings of two rows.
   inner, scales: entry i has scale (i / inner) mod scales; inner 0: entry j of a run has scale j.
   columns: entry i has bias i mod columns. */
typedef struct {
    int64_t runs, run, width, stride, inner, scales, columns, threads;
    float qmin, qmax, floor;
} Layout;

#define INLINE static inline __attribute__((always_inline))

INLINE float at_least(float x, float bound) { return x < bound ? bound : x; }
INLINE float at_most(float x, float bound) { return x > bound ? bound : x; }

INLINE float position(float x, const float *before, int64_t j, float step) {
    return (before ? x + before[j] : x) / step;
}

INLINE void forward_run(const float *restrict x, const float *restrict steps, float step,
                        const float *restrict before, const float *restrict after,
                        float *restrict y, const Layout *l) {
    const float qmin = l->qmin, qmax = l->qmax, floor = l->floor;
    for (int64_t j = 0; j < l->run; j++) {
        const float s = steps ? at_least(steps[j], floor) : step;
        const float v = position(x[j], before, j, s);
        const float value = rintf(at_most(at_least(v, qmin), qmax)) * s;
        y[j] = after ? value + after[j] : value;
    }
}

INLINE void backward_run(const float *restrict x, const float *restrict steps, float step,
                         const float *restrict before, float *restrict grad,
                         float *restrict into_scale, const Layout *l) {
    const float qmin = l->qmin, qmax = l->qmax, floor = l->floor;
    for (int64_t j = 0; j < l->run; j++) {
        const float s = steps ? at_least(steps[j], floor) : step;
        const float v = position(x[j], before, j, s);
        const float clamped = at_most(at_least(v, qmin), qmax);
        const float inside = v == clamped ? 1.0f : 0.0f;
        into_scale[j] = (clamped * inside - rintf(clamped)) * grad[j];
        grad[j] = inside * grad[j];
    }
}

/* Where a run begins in x, and its scale and biases. */
typedef struct {
    int64_t x, bias;
    float step;
} Place;

INLINE Place place(int64_t i, const float *scale, const Layout *l) {
    Place found;
    found.x = l->stride == l->width ? i : i / l->width * l->stride + i % l->width;
    found.bias = l->columns ? i % l->columns : 0;
    found.step = l->inner ? at_least(scale[i / l->inner % l->scales], l->floor) : 0.0f;
    return found;
}

/* The branches on what is absent are taken here, so that the loops above have none. */
#define EACH_RUN(BODY)                                                                             \
    _Pragma("omp parallel for num_threads(l->threads) if (l->threads > 1)")                        \
    for (int64_t r = 0; r < l->runs; r++) {                                                        \
        const int64_t i = r * l->run;                                                              \
        const Place at = place(i, scale, l);                                                       \
        const float *b = before ? before + at.bias : 0;                                            \
        BODY                                                                                       \
    }

void ofq_lsq_forward(const float *x, const float *scale, const float *before, const float *after,
                     float *y, const Layout *l) {
    EACH_RUN({
        const float *a = after ? after + at.bias : 0;
        if (!l->inner)
            forward_run(x + at.x, scale, 0.0f, b, a, y + i, l);
        else if (b && a)
            forward_run(x + at.x, 0, at.step, b, a, y + i, l);
        else if (b)
            forward_run(x + at.x, 0, at.step, b, 0, y + i, l);
        else
            forward_run(x + at.x, 0, at.step, 0, a, y + i, l);
    })
}

/* grad: of y when called, of x afterwards. */
void ofq_lsq_backward(const float *x, const float *scale, const float *before, float *grad,
                      float *into_scale, const Layout *l) {
    EACH_RUN({
        if (!l->inner)
            backward_run(x + at.x, scale, 0.0f, b, grad + i, into_scale + i, l);
        else if (b)
            backward_run(x + at.x, 0, at.step, b, grad + i, into_scale + i, l);
        else
            backward_run(x + at.x, 0, at.step, 0, grad + i, into_scale + i, l);
    })
}

/* steps, units: of each row, s / n floored and s / n. codes: also written unless null. */
void ofq_statsq(const float *restrict weight, const float *steps, const float *units,
                float *restrict y, float *restrict codes, int64_t rows, int64_t columns, float low,
                float high) {
    for (int64_t r = 0; r < rows; r++) {
        const float step = steps[r], unit = units[r];
        const int64_t first = r * columns;
        for (int64_t i = first; i < first + columns; i++) {
            const float u = at_most(at_least(weight[i] / step, low), high) - 0.5f;
            const float code = rintf(u);
            if (codes) codes[i] = code;
            y[i] = (code + 0.5f) * unit;
        }
    }
}
