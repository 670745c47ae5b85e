// For tests on a real /dev/kvm: what doctor says of this host, asked once, and how a test tells its
// figure.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <string_view>

#include "continuo/kvm/doctor.h"

namespace continuo::kvm {

struct TestHost {
    std::optional<System> system;
    DoctorReport report;
    std::string why_not;  ///< where there is no usable /dev/kvm

    bool works(std::string_view check) const {
        for (const DoctorCheck& one : report.checks)
            if (one.id == check) return one.state == CheckState::kWorks;
        return false;
    }
    const std::string& kernel() const { return report.host->identity.kernel; }
};

inline const TestHost& host() {
    static const TestHost found = [] {
        TestHost host;
        auto system = System::open();
        if (!system) {
            host.why_not = "no usable /dev/kvm: " + system.error().message();
            return host;
        }
        auto report = examine(*system);
        EXPECT_TRUE(report) << "doctor: " << report.error().message();
        if (!report) {
            host.why_not = "doctor failed";
            return host;
        }
        host.system.emplace(std::move(*system));
        host.report = std::move(*report);
        return host;
    }();
    return found;
}

/// A line on stdout and a property of the test.
template <class... Values>
void figure(std::string_view name, fmt::format_string<Values...> format, Values&&... values) {
    const std::string text = fmt::format(format, std::forward<Values>(values)...);
    fmt::print("figure  {}  {}: {}\n", host().kernel(), name, text);
    testing::Test::RecordProperty(std::string{name}, text);
}

#define SKIP_WITHOUT_KVM() \
    if (!host().system) GTEST_SKIP() << host().why_not

}  // namespace continuo::kvm
