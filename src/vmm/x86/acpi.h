// The ACPI tables of an x86-64 VM, as small as its hardware: RSDP, XSDT, FADT, FACS, DSDT and MADT
// (ACPI 6.5, chapters 4, 5 and 20). Fixed hardware is one PM1 block, with which the guest switches
// itself off (\_S5), and the reset register; there is no PM timer, no SMI, no battery-backed clock,
// no keyboard controller, no VGA, and the tables say so. Devices that tell the guest of the time
// are described in \_SB, and a generic event device (ACPI0013, 5.6.9) turns their one interrupt
// into Notify: Linux has its driver built in wherever it has ACPI (drivers/acpi/evged.c).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace continuo::vmm::acpi {

// The ports that the tables promise.
inline constexpr std::uint16_t kPm1Event = 0x600;    ///< status and enable, 16 bits each
inline constexpr std::uint16_t kPm1Control = 0x604;  ///< 16 bits
inline constexpr std::uint16_t kResetPort = 0xcf9;
inline constexpr std::uint8_t kResetValue = 0x06;
inline constexpr std::uint16_t kPm1ControlAcpiOn = 1u << 0;   ///< SCI_EN, read only
inline constexpr std::uint16_t kPm1ControlSleep = 1u << 13;   ///< SLP_EN
inline constexpr std::uint16_t kPm1ControlType = 0x7u << 10;  ///< SLP_TYP
inline constexpr std::uint16_t kSoftOffType = 0;              ///< what \_S5 says of it

/// Where the tables lie: in the area that firmware searches and uses, 0xe0000 to 0xfffff, RSDP
/// first.
inline constexpr std::uint64_t kTables = 0xe0000;
inline constexpr std::uint64_t kTablesEnd = 0x100000;

/// The interrupt of what is notified, an input of the I/O APIC alone: level, active high, until the
/// port below has been read, which says what it was for and clears it.
inline constexpr std::uint32_t kEventIrq = 16;
inline constexpr std::uint16_t kEventPort = 0x608;  ///< 8 bits
inline constexpr std::uint8_t kEventNotice = 1u << 0;
inline constexpr std::uint8_t kEventVmclock = 1u << 1;
inline constexpr std::uint8_t kEventGeneration = 1u << 2;

/// The serial line that becomes readable with each notice: COM2, for guests whose kernel has no
/// driver that would hear a Notify.
inline constexpr std::uint16_t kWakePort = 0x2f8;
inline constexpr std::uint32_t kWakeIrq = 3;

/// Where the pages of the devices lie that there are.
struct TimeDevices {
    std::optional<std::uint32_t> notice_page;
    std::optional<std::uint32_t> vmclock_page;
    std::optional<std::uint32_t> generation_page{};
};

/// The tables for that many vCPUs (1 to 64; APIC ids 0 and up), to be written at kTables.
std::vector<std::byte> tables(std::uint32_t vcpus, const TimeDevices& devices);

}  // namespace continuo::vmm::acpi
