#include "acpi.h"

#include <cstdio>
#include <cstring>
#include <span>
#include <string_view>

#include "aml.h"
#include "continuo/abi/time_travel.h"
#include "continuo/abi/vmclock.h"
#include "continuo/kvm/memory.h"
#include "continuo/state/error.h"

namespace continuo::vmm::acpi {

namespace {

using Bytes = std::vector<std::byte>;

constexpr std::uint32_t kLocalApic = 0xfee00000;
constexpr std::uint32_t kIoApic = 0xfec00000;
constexpr std::uint8_t kSciIrq = 9;

// FADT: boot architecture flags (table 5.10) and feature flags (table 5.9).
constexpr std::uint16_t kNoVga = 1u << 2;
constexpr std::uint16_t kNoMsi = 1u << 3;
constexpr std::uint16_t kNoPcieAspm = 1u << 4;
constexpr std::uint16_t kNoCmosClock = 1u << 5;
constexpr std::uint32_t kWbinvdWorks = 1u << 0;
constexpr std::uint32_t kNoPowerButton = 1u << 4;
constexpr std::uint32_t kNoSleepButton = 1u << 5;
constexpr std::uint32_t kResetRegister = 1u << 10;

// MADT (5.2.12).
constexpr std::uint32_t kHasPics = 1;
constexpr std::uint16_t kActiveHighLevel = 0x000d;

/// A table being written: fields by their offset in the specification.
class Table {
  public:
    /// The header of a system description table (5.2.6); length and checksum are filled in at the
    /// end.
    Table(std::string_view signature, std::uint8_t revision, std::size_t bytes) : bytes_(bytes) {
        text(0, signature);
        put(8, revision);
        text(10, "CONTIN");
        text(16, "CONTINUO");
        put(24, std::uint32_t{1});
        text(28, "CONT");
        put(32, std::uint32_t{1});
    }
    template <class T>
    Table& put(std::size_t offset, T value) {
        CONTINUO_CHECK(offset + sizeof value <= bytes_.size());
        std::memcpy(bytes_.data() + offset, &value, sizeof value);
        return *this;
    }
    template <class T>
    Table& add(T value) {
        bytes_.resize(bytes_.size() + sizeof value);
        return put(bytes_.size() - sizeof value, value);
    }
    Table& add_bytes(std::span<const std::byte> more) {
        bytes_.insert(bytes_.end(), more.begin(), more.end());
        return *this;
    }
    /// A register in port space (5.2.3.2, generic address structure).
    Table& put_port(std::size_t offset, std::uint16_t port, std::uint8_t bits) {
        return put(offset, std::uint8_t{1})
            .put(offset + 1, bits)
            .put(offset + 4, std::uint64_t{port});
    }
    Bytes take() {
        put(4, static_cast<std::uint32_t>(bytes_.size()));
        put(9, checksum_byte(bytes_));
        return std::move(bytes_);
    }

    /// What makes the sum of all bytes 0.
    static std::uint8_t checksum_byte(std::span<const std::byte> bytes) {
        std::uint8_t sum = 0;
        for (const std::byte byte : bytes)
            sum = static_cast<std::uint8_t>(sum + std::to_integer<std::uint8_t>(byte));
        return static_cast<std::uint8_t>(-sum);
    }

  private:
    void text(std::size_t offset, std::string_view characters) {
        std::memcpy(bytes_.data() + offset, characters.data(), characters.size());
    }
    Bytes bytes_;
};

constexpr std::size_t kHeaderBytes = 36;

constexpr char kNoticePath[] = "\\_SB_.CTNO";
constexpr char kVmclockPath[] = "\\_SB_.VCLK";
constexpr char kGenerationPath[] = "\\_SB_.VGEN";
constexpr std::uint8_t kGenerationNotify = 0x80;
constexpr std::uint32_t kPage = kvm::kPageSize;

/// Its _UID is the page's address: Linux shows that of any device to any program, and _CRS to none.
Aml notice_device(std::uint32_t page) {
    char address[16];
    std::snprintf(address, sizeof address, "0x%x", page);
    const Aml wake =
        device("WAKE", terms({named("_HID", eisa_id("PNP0501")), named("_UID", integer(1)),
                              named("_CRS", resources({port_resource(kWakePort, 8),
                                                       isa_interrupt_resource(kWakeIrq)}))}));
    return device("CTNO",
                  terms({named("_HID", text(abi::kTimeTravelAcpiHid)), named("_UID", text(address)),
                         named("_CRS", resources({memory_resource(page, kPage)})), wake}));
}

Aml vmclock_device(std::uint32_t page) {
    return device("VCLK", terms({named("_HID", text(abi::kVmclockAcpiHid)),
                                 named("_CID", text(abi::kVmclockAcpiCid)),
                                 named("_CRS", resources({memory_resource(page, kPage)}))}));
}

/// As "Virtual Machine Generation ID" (Microsoft, 2012) has it: ADDR is the address in two halves.
Aml generation_device(std::uint32_t page) {
    return device("VGEN",
                  terms({named("_HID", text("CTNO0002")), named("_CID", text("VM_Gen_Counter")),
                         named("_DDN", text("VM_Gen_Counter")),
                         named("ADDR", package({integer(page), integer(0)}))}));
}

/// Turns the interrupt into what it was for.
Aml event_device(const TimeDevices& devices) {
    Aml told = load_local0("PEND");
    if (devices.notice_page)
        told =
            terms({told, if_local0(kEventNotice, notify(kNoticePath, abi::kTimeTravelAcpiNotify))});
    if (devices.vmclock_page)
        told =
            terms({told, if_local0(kEventVmclock, notify(kVmclockPath, abi::kVmclockAcpiNotify))});
    if (devices.generation_page)
        told =
            terms({told, if_local0(kEventGeneration, notify(kGenerationPath, kGenerationNotify))});
    return device("GED_", terms({named("_HID", text("ACPI0013")),
                                 named("_CRS", resources({interrupt_resource(kEventIrq)})),
                                 port_byte("EVRG", "PEND", kEventPort), method("_EVT", 1, told)}));
}

Aml time_devices(const TimeDevices& devices) {
    if (!devices.notice_page && !devices.vmclock_page && !devices.generation_page) return {};
    Aml all;
    if (devices.notice_page) all = terms({all, notice_device(*devices.notice_page)});
    if (devices.vmclock_page) all = terms({all, vmclock_device(*devices.vmclock_page)});
    if (devices.generation_page) all = terms({all, generation_device(*devices.generation_page)});
    return scope("\\_SB_", terms({all, event_device(devices)}));
}

Bytes make_dsdt(const TimeDevices& devices) {
    const Aml off = integer(kSoftOffType);
    const Aml none = integer(0);
    return Table{"DSDT", 2, kHeaderBytes}
        .add_bytes(named("_S5_", package({off, off, none, none})))
        .add_bytes(time_devices(devices))
        .take();
}

/// 5.2.10: nothing here is used, for there is no firmware that sleeps or shares a lock.
Bytes make_facs() {
    Bytes facs(64);
    std::memcpy(facs.data(), "FACS", 4);
    facs[4] = std::byte{64};
    facs[32] = std::byte{2};
    return facs;
}

Bytes make_fadt(std::uint64_t facs, std::uint64_t dsdt) {
    return Table{"FACP", 6, 276}
        .put(36, static_cast<std::uint32_t>(facs))
        .put(40, static_cast<std::uint32_t>(dsdt))
        .put(46, std::uint16_t{kSciIrq})
        .put(56, std::uint32_t{kPm1Event})
        .put(64, std::uint32_t{kPm1Control})
        .put(88, std::uint8_t{4})
        .put(89, std::uint8_t{2})
        // Latencies of C2 and C3 so long that there are none.
        .put(96, std::uint16_t{0xfff})
        .put(98, std::uint16_t{0xfff})
        .put(109, static_cast<std::uint16_t>(kNoVga | kNoMsi | kNoPcieAspm | kNoCmosClock))
        .put(112, std::uint32_t{kWbinvdWorks | kNoPowerButton | kNoSleepButton | kResetRegister})
        .put_port(116, kResetPort, 8)
        .put(128, kResetValue)
        .put(131, std::uint8_t{5})
        .put(132, facs)
        .put(140, dsdt)
        .put_port(148, kPm1Event, 32)
        .put_port(172, kPm1Control, 16)
        .take();
}

Bytes make_madt(std::uint32_t vcpus) {
    Table madt{"APIC", 5, kHeaderBytes};
    madt.add(kLocalApic).add(kHasPics);
    for (std::uint32_t id = 0; id < vcpus; ++id) {
        madt.add(std::uint8_t{0}).add(std::uint8_t{8});  // a processor's local APIC
        madt.add(static_cast<std::uint8_t>(id)).add(static_cast<std::uint8_t>(id));
        madt.add(std::uint32_t{1});
    }
    madt.add(std::uint8_t{1}).add(std::uint8_t{12});  // the I/O APIC, for interrupts from 0
    madt.add(std::uint8_t{0}).add(std::uint8_t{0}).add(kIoApic).add(std::uint32_t{0});
    madt.add(std::uint8_t{2}).add(std::uint8_t{10});  // the SCI is no ISA interrupt's edge
    madt.add(std::uint8_t{0}).add(kSciIrq).add(std::uint32_t{kSciIrq}).add(kActiveHighLevel);
    return madt.take();
}

Bytes make_xsdt(std::uint64_t fadt, std::uint64_t madt) {
    return Table{"XSDT", 1, kHeaderBytes}.add(fadt).add(madt).take();
}

/// 5.2.5.3, revision 2: 36 bytes, the first 20 of which have a checksum of their own.
Bytes make_rsdp(std::uint64_t xsdt) {
    Bytes rsdp(36);
    std::memcpy(rsdp.data(), "RSD PTR ", 8);
    std::memcpy(rsdp.data() + 9, "CONTIN", 6);
    rsdp[15] = std::byte{2};
    rsdp[20] = std::byte{36};
    std::memcpy(rsdp.data() + 24, &xsdt, sizeof xsdt);
    rsdp[8] = std::byte{Table::checksum_byte(std::span{rsdp}.first(20))};
    rsdp[32] = std::byte{Table::checksum_byte(rsdp)};
    return rsdp;
}

/// Tables one after the other from kTables, on 64-byte boundaries (the FACS asks for that).
class Layout {
  public:
    std::uint64_t add(const Bytes& table) {
        const std::uint64_t at = kTables + bytes_.size();
        bytes_.insert(bytes_.end(), table.begin(), table.end());
        bytes_.resize((bytes_.size() + 63) / 64 * 64);
        return at;
    }
    void put_first(const Bytes& table) { std::memcpy(bytes_.data(), table.data(), table.size()); }
    Bytes take() {
        CONTINUO_CHECK(kTables + bytes_.size() <= kTablesEnd);
        return std::move(bytes_);
    }

  private:
    Bytes bytes_ = Bytes(64);  // for the RSDP
};

}  // namespace

Bytes tables(std::uint32_t vcpus, const TimeDevices& devices) {
    Layout out;
    const std::uint64_t facs = out.add(make_facs());
    const std::uint64_t dsdt = out.add(make_dsdt(devices));
    const std::uint64_t fadt = out.add(make_fadt(facs, dsdt));
    const std::uint64_t madt = out.add(make_madt(vcpus));
    out.put_first(make_rsdp(out.add(make_xsdt(fadt, madt))));
    return out.take();
}

}  // namespace continuo::vmm::acpi
