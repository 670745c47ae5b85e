// The witness's machine on arm64: its ports and its exceptions. EL1, no floating point. It takes no
// interrupts.
#include "continuo/vmm/witness_machine.h"
#include "payload.h"

using namespace continuo::vmm::witness;

namespace {

// One plain store each: KVM decodes no other kind of access (ESR_EL2.ISV).
void out8(std::uint64_t port, std::uint8_t value) {
    asm volatile("strb %w0, [%1]" ::"r"(value), "r"(port) : "memory");
}
void out32(std::uint64_t port, std::uint32_t value) {
    asm volatile("str %w0, [%1]" ::"r"(value), "r"(port) : "memory");
}

void print(const char* text) {
    for (; *text != 0; ++text)
        out8(kPortSerial, static_cast<std::uint8_t>(*text));
}

}  // namespace

extern "C" void witness_setup(const Report& report) {
    if (report.vcpu == 0) print("witness: watching\n");
}

extern "C" [[noreturn]] void witness_fault(Report& report, std::uint64_t vector,
                                           std::uint64_t syndrome, std::uint64_t address) {
    report.fault_error = syndrome;
    report.fault_rip = address;
    report.fault_vector = vector + 1;
    for (;;)
        out32(kPortExit, kExitFault);
}
