#include <math.h> /* cc -O2 fifteen.c -o fifteen -lm; then ./fifteen inside a folder dumped with --raw */
#include <stdio.h>
#define READ(a, size) (f = fopen("gelu/in/" #a ".f64", "rb")) && fread(a, 8, size, f) && fclose(f)
static double x[999], W1[999], b1[999], W2[999], J[9999];
int main(void) {
    int n, d, h, o;
    FILE *f = fopen("gelu/sizes.txt", "r");
    if (fscanf(f, "kind %*s expert %*s activation %*s n %d d %d h %d o %d", &n, &d, &h, &o) != 4) return 1;
    READ(x, n * d), READ(W1, h * d), READ(b1, h), READ(W2, o * h);
    for (int t = 0; t < n; t++)
        for (int j = 0; j < h; j++) {
            double z = b1[j];
            for (int i = 0; i < d; i++) z += W1[j * d + i] * x[t * d + i];
            double slope = erfc(-z * sqrt(0.5)) / 2 + z * exp(-z * z / 2) / sqrt(2 * acos(-1));
            for (int q = 0; q < o * d; q++) J[t * o * d + q] += W2[q / d * h + j] * slope * W1[j * d + q % d];
        }
    f = fopen("answers/gelu/jacobian.f64", "wb");
    return fwrite(J, 8, n * o * d, f) == n * o * d && fclose(f) == 0 ? 0 : 1;
}
