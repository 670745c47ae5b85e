// continuo vm: a small real VM, to run, to send and to receive, to save and to restore.
#include "vm.h"

namespace continuo::cli {

namespace {

constexpr const char* kExample =
    "Example:\n"
    "  $ continuo vm run --control /tmp/a.sock &\n"
    "  $ continuo vm receive --listen unix:/tmp/b.mig --control /tmp/b.sock &\n"
    "  $ continuo vm send --control /tmp/a.sock --to unix:/tmp/b.mig\n";

}  // namespace

void add_vm(CLI::App& program, Invocation& invocation) {
    CLI::App* vm =
        program.add_subcommand("vm", "Run, send, receive, save and restore a small real VM");
    vm->require_subcommand(1);
    vm->footer(kExample);
    add_vm_run(*vm, invocation);
    add_vm_send(*vm, invocation);
    add_vm_receive(*vm, invocation);
    add_vm_snapshot(*vm, invocation);
    add_vm_restore(*vm, invocation);
    add_vm_control(*vm, invocation);
}

}  // namespace continuo::cli
