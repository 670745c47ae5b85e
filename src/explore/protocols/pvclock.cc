// KVM's pvclock page: one host thread publishes, guests read (kvm_setup_guest_pvclock(),
// pvclock_read_begin() and _retry()), and the global fallback of readers whose pages have no stable
// bit (S3.5).
#include <fmt/format.h>

#include <vector>

#include "continuo/explore/interleaving.h"
#include "continuo/explore/protocol.h"

namespace continuo::explore {

namespace {

// -- publish against readers --

struct Publish {
    MemoryModel model = MemoryModel::kTso;
    int readers = 2;
    int updates = 2;
    int reads = 1;       ///< by each reader
    bool words = false;  ///< the copy is of 64-bit words, not of fields
    bool odd_while_writing = true;
    bool store_barriers = true;
    bool load_barriers = true;
    bool release_instead = false;  ///< stlr in place of both store barriers
    bool checks_again = true;      ///< the reader looks at the version after the fields, too
};

/// The page field by field: the stores that KVM's copy can be seen as, and the loads of a guest.
/// A field's value is the number of the update that it belongs to.
struct Page {
    Loc version{};
    std::vector<Loc> fields;

    /// By field, or by the 64-bit words in which a copy moves them.
    Page(Program& program, bool words) : version{program.shared("version")} {
        fields = {program.shared("tsc_timestamp"), program.shared("system_time")};
        if (words) {
            fields.push_back(program.shared("mul_shift_flags"));
            return;
        }
        for (const char* field : {"tsc_to_system_mul", "tsc_shift", "flags"})
            fields.push_back(program.shared(field));
    }
};

void add_publisher(Program& program, const Page& page, const Publish& how) {
    Thread& host = program.thread("host");
    const Order order = how.release_instead ? Order::kRelease : Order::kPlain;
    const bool barriers = how.store_barriers && !how.release_instead;
    for (int update = 1; update <= how.updates; ++update) {
        if (how.odd_while_writing) host.store(page.version, 2 * update - 1, order);
        if (how.odd_while_writing && barriers) host.fence(Fence::kStore);
        for (const Loc field : page.fields)
            host.store(field, update);
        if (barriers) host.fence(Fence::kStore);
        host.store(page.version, 2 * update, order);
        // The next update is a next guest entry, which is far behind a full barrier.
        if (barriers && update < how.updates) host.fence(Fence::kFull);
    }
}

/// Tries until the version is even and the same before and after. What it then returns must be of
/// one update, and of none older than the last one that it returned.
void add_reader(Program& program, const Page& page, const Publish& how, int number) {
    Thread& guest = program.thread(fmt::format("reader{}", number));
    const Reg version = guest.reg("version");
    const Reg first = guest.reg("update");
    const Reg found = guest.reg("found");
    const Reg torn = guest.reg("torn");
    const Reg last = guest.reg("last");
    for (int read = 0; read < how.reads; ++read) {
        const Label again = guest.label();
        guest.bind(again).load(version, page.version);
        guest.compute(version, Op::kAnd, version, 0xfe);
        if (how.load_barriers) guest.fence(Fence::kLoad);
        guest.load(first, page.fields[0]).move(torn, 0);
        for (std::size_t i = 1; i < page.fields.size(); ++i) {
            guest.load(found, page.fields[i]);
            guest.compute(found, Op::kNotEqual, found, first);
            guest.compute(torn, Op::kAdd, torn, found);
            guest.compute(torn, Op::kNotEqual, torn, 0);
        }
        if (how.load_barriers) guest.fence(Fence::kLoad);
        if (how.checks_again) {
            guest.load(found, page.version);
            guest.compute(found, Op::kNotEqual, found, version).jump_unless_zero(found, again);
        } else {
            guest.step("return");
        }
        guest.compute(found, Op::kEqual, torn, 0);
        guest.check(found, "all fields that a reader accepts are of one update");
        guest.compute(found, Op::kLessOrEqual, last, first);
        guest.check(found, "a reader never goes back to an older update");
        guest.move(last, first);
    }
}

std::unique_ptr<System> make(const Publish& how) {
    Program program{"pvclock-publish"};
    const Page page{program, how.words};
    add_publisher(program, page, how);
    for (int i = 0; i < how.readers; ++i)
        add_reader(program, page, how, i);
    return std::make_unique<Interleaving>(std::move(program.complete()), how.model);
}

Variant variant(std::string name, std::string summary, const Publish& how, bool wrong) {
    return {std::move(name), std::move(summary),
            wrong ? std::optional{Violation::Kind::kAssertion} : std::nullopt,
            !wrong && how.model != MemoryModel::kSc,  // timed beside SPIN, which does not look
            [how] { return make(how); }};
}

// -- the fallback --

struct Fallback {
    int readers = 2;
    int skew = 2;  ///< by how much the second vCPU's page is ahead of the first's
    bool keeps_last_value = true;
    bool exchanges = true;  ///< compare-and-exchange; false: a plain store
};

// Time is a device that goes on by itself. A read must not be less than what any read returned that
// had ended when it began.
void add_clock_reader(Program& program, Loc now, Loc last_value, Loc returned, const Fallback& how,
                      int number) {
    Thread& guest = program.thread(fmt::format("vcpu{}", number));
    const Reg time = guest.reg("time");
    const Reg floor = guest.reg("floor");
    const Reg last = guest.reg("last");
    const Reg found = guest.reg("found");
    for (int read = 0; read < 2; ++read) {
        guest.step("read the page and RDTSC").get(time, now).get(floor, returned);
        guest.compute(time, Op::kAdd, time, number == 1 ? how.skew : 0);
        const Label again = guest.label();
        const Label stale = guest.label();
        const Label done = guest.label();
        if (how.keeps_last_value) {
            guest.bind(again).load(last, last_value);
            guest.compute(found, Op::kLessOrEqual, time, last).jump_unless_zero(found, stale);
            if (how.exchanges)
                guest.cas(found, last_value, last, time).jump_if_zero(found, again);
            else
                guest.store(last_value, time);
            guest.jump(done);
            guest.bind(stale).move(time, last).bind(done);
        } else {
            guest.step("return");
        }
        guest.compute(found, Op::kLessOrEqual, floor, time);
        guest.check(found, "no read is less than one that ended before it began");
        const Label kept = guest.label();
        guest.get(last, returned).compute(found, Op::kLess, last, time);
        guest.jump_if_zero(found, kept).put(returned, time).bind(kept);
    }
}

std::unique_ptr<System> make(const Fallback& how) {
    Program program{"pvclock-fallback"};
    const Loc last_value = program.shared("last_value");
    const Loc now = program.direct("now", 1);
    const Loc returned = program.direct("returned");
    Thread& time = program.thread("time");
    const Reg t = time.reg("t");
    for (int i = 0; i < 3; ++i)
        time.step("time goes on").get(t, now).compute(t, Op::kAdd, t, 1).put(now, t);
    for (int i = 0; i < how.readers; ++i)
        add_clock_reader(program, now, last_value, returned, how, i);
    return std::make_unique<Interleaving>(std::move(program.complete()), MemoryModel::kTso);
}

Variant variant(std::string name, std::string summary, const Fallback& how, bool wrong) {
    return {std::move(name), std::move(summary),
            wrong ? std::optional{Violation::Kind::kAssertion} : std::nullopt, !wrong,
            [how] { return make(how); }};
}

}  // namespace

Protocol pvclock_publish() {
    constexpr auto arm64 = MemoryModel::kArm64;
    Protocol out{"pvclock-publish", "one page, one publisher, readers that never lock", {}};
    out.variants = {
        variant(
            "sc-3-readers",
            "sequential consistency, 3 readers, 2 updates: what bench/explore_spin has SPIN search",
            Publish{.model = MemoryModel::kSc,
                    .readers = 3,
                    .store_barriers = false,
                    .load_barriers = false},
            false),
        variant("x86", "x86-TSO, 2 readers, 2 updates", Publish{}, false),
        variant("x86-reads-twice", "x86-TSO, 1 reader that reads twice, 3 updates",
                Publish{.readers = 1, .updates = 3, .reads = 2}, false),
        variant("arm64", "arm64, barriers on both sides, 1 reader, 2 updates, by words",
                Publish{.model = arm64, .readers = 1, .words = true}, false),
        variant("arm64-fields", "arm64, barriers on both sides, 1 reader, 1 update, by fields",
                Publish{.model = arm64, .readers = 1, .updates = 1}, false),
        variant("arm64-2-readers", "arm64, barriers on both sides, 2 readers, 1 update, by words",
                Publish{.model = arm64, .updates = 1, .words = true}, false),
        variant("x86-never-odd", "the version is raised by 2 behind the fields",
                Publish{.odd_while_writing = false}, true),
        variant("x86-looks-before-only", "the reader does not look at the version again",
                Publish{.checks_again = false}, true),
        variant(
            "arm64-no-barriers", "arm64 without any barrier",
            Publish{.model = arm64, .readers = 1, .store_barriers = false, .load_barriers = false},
            true),
        variant("arm64-no-store-barriers", "arm64, the publisher without smp_wmb()",
                Publish{.model = arm64, .readers = 1, .store_barriers = false}, true),
        variant("arm64-no-load-barriers", "arm64, the reader without smp_rmb()",
                Publish{.model = arm64, .readers = 1, .load_barriers = false}, true),
        variant("arm64-release-stores",
                "arm64, stlr of the version in place of the barriers: the "
                "odd version may come after the fields",
                Publish{.model = arm64, .readers = 1, .release_instead = true}, true),
    };
    return out;
}

Protocol pvclock_fallback() {
    Protocol out{
        "pvclock-fallback", "pages without the stable bit, and the guest's last_value", {}};
    out.variants = {
        variant("last-value", "x86-TSO, 2 vCPUs, pages apart, compare-and-exchange", Fallback{},
                false),
        variant("last-value-3-vcpus", "the same with 3 vCPUs", Fallback{.readers = 3}, false),
        variant("no-last-value", "each vCPU goes by its own page",
                Fallback{.keeps_last_value = false}, true),
        variant("plain-store", "last_value is stored, not exchanged", Fallback{.exchanges = false},
                true),
    };
    return out;
}

}  // namespace continuo::explore
