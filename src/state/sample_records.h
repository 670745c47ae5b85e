// Records that the tests of this module compare with. Private to the tests.
#pragma once

#include "continuo/state/record.h"

namespace continuo::state::sample {

/// The record of docs/formats/record.md: two vCPUs of a 2.5 GHz guest, kvmclock from the page.
inline Record two_vcpus() {
    Record record;
    record.source.boot_id = {0x0f, 0x8e, 0x3c, 0x41, 0x5a, 0x27, 0x4d, 0x10,
                             0x9b, 0x6c, 0x2d, 0x7f, 0xa1, 0x33, 0xc8, 0x5e};
    record.source.kernel = "Linux 6.12.41+deb12-amd64 x86_64";
    record.anchor.counter = Count<SourceCounter>::from_raw(8'000'000'000'123);
    record.anchor.tai = Instant<Tai>::from_raw(1'760'000'037'000'000'000);
    record.anchor.tai_bound_ns = 25'000;
    record.anchor.tai_offset_sec = 37;
    record.anchor.synchronised = true;
    record.anchor.frequency = *Hz::from_hz(2'500'000'000);
    record.anchor.rate_bound_ppb = 27'000;
    record.anchor.suspended_ns = 3'600'000'000'000;
    const auto offset = static_cast<std::uint64_t>(-7'000'000'000'000);
    for (std::uint64_t i = 0; i < 2; ++i) {
        VcpuClock vcpu;
        vcpu.counter = Count<GuestCounter>::from_raw(1'000'000'000'123);
        vcpu.tsc_offset = offset;
        vcpu.frequency = *Hz::from_hz(2'500'000'000);
        vcpu.system_time_msr = 0x1f'f000'0001 + 64 * i;
        vcpu.guest_stopped_pending = i == 1;
        record.vcpus.push_back(vcpu);
    }
    KvmclockState kvmclock;
    kvmclock.line = PvclockLine{Count<GuestCounter>::from_raw(999'000'000'000),
                                Instant<Kvmclock>::from_raw(399'600'000'000),
                                *PvclockScale::make(0xcccccccc, -1)};
    kvmclock.origin = KvmclockOrigin::kPage;
    kvmclock.masterclock = true;
    kvmclock.bound_ns = 0;
    kvmclock.kernel_minus_line = Nanos<Kvmclock>::from_raw(-3);
    record.kvmclock = kvmclock;
    record.notice_sequence = 2;
    return record;
}

/// arm64, by value, with numbers at their edges.
inline Record arm64() {
    Record record;
    record.architecture = Architecture::kArm64;
    record.anchor.counter = Count<SourceCounter>::from_raw(~0ULL);
    record.anchor.tai = Instant<Tai>::from_raw(1ULL << 63);
    record.anchor.tai_bound_ns = ~0ULL;
    record.anchor.tai_offset_sec = -37;
    record.anchor.synchronised = false;
    record.anchor.frequency = *Hz::from_hz(62'500'000);
    VcpuClock vcpu;
    vcpu.counter = Count<GuestCounter>::from_raw(1ULL << 32);
    vcpu.counter_bound_ticks = 625;
    vcpu.frequency = *Hz::from_hz(62'500'000);
    record.vcpus.push_back(vcpu);
    return record;
}

/// x86-64 with as many vCPUs as wanted, every one different, and no kvmclock.
inline Record many_vcpus(std::uint64_t count) {
    Record record = two_vcpus();
    record.kvmclock.reset();
    record.vcpus.clear();
    for (std::uint64_t i = 0; i < count; ++i) {
        VcpuClock vcpu;
        vcpu.counter = Count<GuestCounter>::from_raw(i * 0x9e37'79b9'7f4a'7c15);
        vcpu.counter_bound_ticks = i;
        if (i % 2 == 0) vcpu.tsc_offset = ~i;
        vcpu.tsc_adjust = -static_cast<std::int64_t>(i);
        vcpu.frequency = *Hz::from_khz(1'000'000 + i);
        record.vcpus.push_back(vcpu);
    }
    return record;
}

}  // namespace continuo::state::sample
