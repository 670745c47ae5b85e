#include "device_tree.h"

#include <cstdio>

#include "continuo/abi/time_travel.h"
#include "continuo/abi/vmclock.h"
#include "continuo/kvm/memory.h"
#include "continuo/vmm/arm64_board.h"
#include "flattened_tree.h"

namespace continuo::vmm::arm64 {

namespace {

constexpr std::uint32_t kInterruptController = 1;  // its phandle

// The first and the third cell of an interrupt, of a GIC.
constexpr std::uint32_t kSpi = 0;
constexpr std::uint32_t kPpi = 1;
constexpr std::uint32_t kLevelHigh = 4;
constexpr std::uint32_t kEdgeRising = 1;

constexpr std::uint32_t kSerialClockHz = 1'843'200;  // of a PC's, 16 x 115200 baud

std::string at_address(const char* name, std::uint64_t address) {
    char text[48];
    std::snprintf(text, sizeof text, "%s@%llx", name, static_cast<unsigned long long>(address));
    return text;
}

void put_cpus(FlattenedTree& tree, std::uint32_t vcpus) {
    tree.node("cpus", [&] {
        tree.cells("#address-cells", {1});
        tree.cells("#size-cells", {0});
        for (std::uint32_t id = 0; id < vcpus; ++id) {
            tree.node(at_address("cpu", affinity(id)), [&] {
                tree.text("device_type", "cpu");
                tree.text("compatible", "arm,armv8");
                tree.text("enable-method", "psci");
                tree.cells("reg", {affinity(id)});
            });
        }
    });
    tree.node("psci", [&] {
        tree.texts("compatible", {"arm,psci-1.0", "arm,psci-0.2"});
        tree.text("method", "hvc");
    });
}

void put_timer(FlattenedTree& tree) {
    const auto ppi = [](std::uint32_t interrupt) { return interrupt - kFirstPpi; };
    tree.node("timer", [&] {
        tree.text("compatible", "arm,armv8-timer");
        tree.cells("interrupts", {kPpi, ppi(kSecureTimerInterrupt), kLevelHigh,    //
                                  kPpi, ppi(kPhysicalTimerInterrupt), kLevelHigh,  //
                                  kPpi, ppi(kVirtualTimerInterrupt), kLevelHigh,   //
                                  kPpi, ppi(kHypervisorTimerInterrupt), kLevelHigh});
        tree.flag("always-on");
    });
}

void put_interrupt_controller(FlattenedTree& tree, std::uint32_t vcpus) {
    tree.node(at_address("interrupt-controller", kDistributor), [&] {
        tree.text("compatible", "arm,gic-v3");
        tree.wide_cells(
            "reg", {kDistributor, kDistributorBytes, kRedistributors, vcpus * kRedistributorBytes});
        tree.flag("interrupt-controller");
        tree.cells("#interrupt-cells", {3});
        tree.cells("#address-cells", {0});
        tree.cells("phandle", {kInterruptController});
    });
}

void put_serial(FlattenedTree& tree) {
    tree.node(at_address("serial", kSerial), [&] {
        tree.text("compatible", "ns16550a");
        tree.wide_cells("reg", {kSerial, kSerialBytes});
        tree.cells("interrupts", {kSpi, kSerialInterrupt - kFirstSpi, kLevelHigh});
        tree.cells("clock-frequency", {kSerialClockHz});
    });
}

/// A device that is a page of memory and an interrupt.
void put_page_device(FlattenedTree& tree, const char* name, const char* compatible,
                     std::uint64_t page, std::uint32_t interrupt) {
    tree.node(at_address(name, page), [&] {
        tree.text("compatible", compatible);
        tree.wide_cells("reg", {page, kvm::kPageSize});
        tree.cells("interrupts", {kSpi, interrupt - kFirstSpi, kEdgeRising});
    });
}

/// Their pages are no memory for the kernel to use.
void put_time_devices(FlattenedTree& tree, const MachineDescription& machine) {
    const auto reserve = [&](std::uint64_t page) {
        tree.node(at_address("page", page), [&] {
            tree.wide_cells("reg", {page, kvm::kPageSize});
            tree.flag("no-map");
        });
    };
    if (!machine.notice && !machine.vmclock) return;
    tree.node("reserved-memory", [&] {
        tree.cells("#address-cells", {2});
        tree.cells("#size-cells", {2});
        tree.flag("ranges");
        if (machine.notice) reserve(kNoticePage);
        if (machine.vmclock) reserve(kVmclockPage);
    });
    if (machine.notice) {
        put_page_device(tree, "time-travel", abi::kTimeTravelCompatible, kNoticePage,
                        kNoticeInterrupt);
    }
    if (machine.vmclock)
        put_page_device(tree, "ptp", abi::kVmclockCompatible, kVmclockPage, kVmclockInterrupt);
}

void put_chosen(FlattenedTree& tree, const MachineDescription& machine) {
    tree.node("chosen", [&] {
        tree.text("bootargs", machine.command_line);
        tree.text("stdout-path", "/" + at_address("serial", kSerial));
        if (machine.initrd_bytes == 0) return;
        tree.wide_cells("linux,initrd-start", {machine.initrd});
        tree.wide_cells("linux,initrd-end", {machine.initrd + machine.initrd_bytes});
    });
}

}  // namespace

std::vector<std::byte> device_tree(const MachineDescription& machine) {
    FlattenedTree tree;
    tree.node("", [&] {
        tree.text("compatible", "linux,dummy-virt");
        tree.text("model", "Continuo");
        tree.cells("#address-cells", {2});
        tree.cells("#size-cells", {2});
        tree.cells("interrupt-parent", {kInterruptController});
        put_chosen(tree, machine);
        tree.node("memory@0", [&] {
            tree.text("device_type", "memory");
            tree.wide_cells("reg", {0, machine.memory_bytes});
        });
        put_cpus(tree, machine.vcpus);
        put_timer(tree);
        put_interrupt_controller(tree, machine.vcpus);
        put_serial(tree);
        put_time_devices(tree, machine);
    });
    return tree.finish();
}

}  // namespace continuo::vmm::arm64
