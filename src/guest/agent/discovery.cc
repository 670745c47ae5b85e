#include "discovery.h"

#include <fcntl.h>

#include "number.h"

namespace continuo::guest {
namespace {

constexpr char kDevice[] = "/sys/bus/acpi/devices/CTNO0001:00/uid";
constexpr char kDeviceId[] = "CTNO0001";
constexpr unsigned kSerialPorts = 32;
/// From a terminal to the port that it is, and on to the ACPI device that the port is below. Since
/// Linux 6.5 two devices of the serial core stand between.
constexpr const char* kToParent[] = {"/device/firmware_node/../hid",
                                     "/device/../../firmware_node/../hid"};

/// What sysfs's file says, without its newline; empty where there is none.
class Attribute {
  public:
    Attribute(System& system, const char* path) {
        const int fd = system.open(path, O_RDONLY);
        if (fd < 0) return;
        int size = system.read(fd, text_, sizeof(text_) - 1);
        system.close(fd);
        if (size > 0 && text_[size - 1] == '\n') --size;
        text_[size < 0 ? 0 : size] = '\0';
    }
    const char* text() const { return text_; }
    bool is(const char* other) const {
        const char* own = text_;
        for (; *own != '\0' && *own == *other; ++own)
            ++other;
        return *own == *other;
    }

  private:
    char text_[64] = {};
};

bool belongs_to_device(System& system, std::uint64_t port) {
    for (const char* const way : kToParent) {
        Text<96> path;
        path << "/sys/class/tty/ttyS" << port << way;
        if (system.exists(path.c_str()) && Attribute{system, path.c_str()}.is(kDeviceId))
            return true;
    }
    return false;
}

}  // namespace

FoundNotice find_notice(System& system) {
    if (!system.exists(kDevice)) return {};
    FoundNotice found{true, kNoPage};
    const Attribute address{system, kDevice};
    if (!parse_number(address.text(), kNoPage - 1, found.page)) found.page = kNoPage;
    return found;
}

DevicePath find_wake(System& system) {
    DevicePath path;
    for (std::uint64_t port = 0; port < kSerialPorts; ++port)
        if (belongs_to_device(system, port)) {
            path << "/dev/ttyS" << port;
            break;
        }
    return path;
}

}  // namespace continuo::guest
