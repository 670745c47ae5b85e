/* What the end-to-end test runs inside: argv back, both streams binary, KVM's version, code 37. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int write_all(int fd, const unsigned char *data, size_t size) {
    while (size > 0) {
        ssize_t done = write(fd, data, size);
        if (done < 0)
            return -1;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

int main(int argc, char **argv) {
    unsigned char bytes[1 << 16];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i ^ (i >> 8));
    for (int round = 0; round < 8; round++) /* more than any pipe on the way holds */
        if (write_all(1, bytes, sizeof bytes) != 0)
            return 1;
    for (int i = 0; i < argc; i++) /* with the NUL bytes */
        if (write_all(1, (unsigned char *)argv[i], strlen(argv[i]) + 1) != 0)
            return 1;

    int kvm = open("/dev/kvm", O_RDWR);
    if (kvm < 0) {
        dprintf(2, "open: %s\n", strerror(errno));
        return 2;
    }
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    dprintf(2, "api %d, vm %s\n", ioctl(kvm, KVM_GET_API_VERSION, 0), vm >= 0 ? "made" : "refused");
    for (int i = 255; i >= 0; i--)
        bytes[255 - i] = (unsigned char)i;
    return write_all(2, bytes, 256) == 0 ? 37 : 3;
}
