"""Functions on a stack that are not to blame: those that detect a bug, and helpers that any caller may misuse.

Data only; :mod:`harness.verdict.log.frames` does the work. Titles in the field's form ("KASAN: ... Read in FUNC") name
the innermost function that is not one of these, so that a kernel's bug has the same title wherever it is met.
Every expression is searched in the function's name.
"""

from __future__ import annotations

from harness.verdict.log.expression import Expression

_SANITIZERS = (
    r"kasan|kmsan|__[am]san|hwasan|__sanitizer|kcsan_setup_watchpoint|check_memory_region|check_(?:heap_)?object"
    r"|print_address_description|print_report|object_err|check_bytes_and_report|(?:alloc|free)_debug_processing|free_to_partial_list"
    r"|read_word_at_a_time|(?:read|write)_once_\w*nocheck|__fortify_report"
)
_REPORTING = (
    r"panic|dump_(?:stack|backtrace)|(?:show|walk)_stack|printk|va_format|dev_(?:info|notice|warn|err|alert|crit|emerg)"
    r"|__warn|warn_(?:slowpath|alloc|bogus)|(?:report|fixup|handle)_bug|invalid_op|do_error|_trap$|do_trap|assertfail"
    r"|program_check_(?:exception|common)|print_tainted|^get_taint$|print_usage_bug|print_unlock|imbalance_bug"
    r"|stack_trace_(?:save|consume_entry)|arch_stack_walk|__might_(?:fault|resched)|might_(?:sleep|fault)|hex_dump"
    r"|perf_trace|(?:trace|lockdep)_(?:hard|soft)irq"
)
_ALLOCATORS = (
    r"[mzc]alloc|krealloc|kmem_cache|slab_|allocate_slab|alloc_page|__alloc_frozen_pages_noprof|^kv?free$|kfree_skb"
    r"|folio_(?:alloc|unlock)|filemap_(?:alloc|get)_folio|find_or_create_page|do_read_cache_folio"
    r"|read_cache_page|pagecache_get_page|grab_cache_page_write_begin|truncate_inode_pages_range|ida_free|__phys_addr"
)
_LOCKS = (
    r"lockdep|lock_(?:acquire|release|class)|mark_lock|(?:mark|reacquire)_held_locks|raw_spin_rq|spin_(?:try|un)?lock"
    r"|(?:read|write)_(?:try|un)?lock|^down$|down_(?:read|write|trylock)|up_(?:read|write)|^(?:__|rt_)?mutex_"
    r"|osq_(?:un)?lock|owner_on_cpu|^(?:un)?lock_page|seqprop_assert|bh_(?:en|dis)able|cleanup_srcu_struct"
    r"|atomic(?:64)?_(?:dec|inc|read|set|or|xor|and|add|sub|fetch|xchg|cmpxchg|try)|(?:set|clear|change|test)_bit"
)
_REFERENCES = (
    r"^refcount_|^kref_|ref_tracker|^kobject_|[^_]kobject_|^put_device$|^iput(?:_final)?$|^ihold$|drop_nlink|dput"
    r"|debug_object|(?:timer|work)_is_static_object"
)
_CONTAINERS = (
    r"list_(?:add|del|replace|move|splice)|^(?:__)?rb_|^klist_|xas_(?:start|load|find)"
    r"|rhashtable_lookup|mark_buffer_dirty|find_lock_entries|extract_(?:user|iter)_to_sg"
)
_STRINGS = (
    r"mem(?:cpy|cmp|set|chr|move|dup)|str(?:n?cmp|n?cpy|lcpy|scpy|len|n?str|nlen|chr|n?dup)|string|pointer"
    r"|sc?nprintf|kv?asprintf|^crc\d+|crc_itu_t"
)
_COPYING = (
    r"copy_(?:to|from)_(?:user|iter)|copy_(?:page|folio)_(?:to|from)_iter|^copy(?:in|out)$|(?:put|get)_user"
    r"|(?:read|write)[bwlq]$|logic_(?:in|out)|_indirect_thunk_"
)
_WAITING = (
    r"__wake_up|^complete$|wait_for_completion|finish_wait|kthread_stop|(?:flush|queue|insert)_work|__queue_delayed_work"
    r"|queue_delayed_work_on|cancel_work(?:_timer|_sync)|try_to_grab_pending|(?:drain|destroy)_workqueue"
    r"|del_timer|lock_timer_base|__timer_delete_sync|sk_stop_timer_sync|__mod_timer"
)
_DEVICES = (
    r"add_uevent_var|get_device_parent|device_(?:add|del|unregister|destroy|release|for_each_child|remove_file)"
    r"|devres_release_all|hwrng_unregister|i2c_del_adapter|__unregister_client|rollback_registered|unregister_netdev"
    r"|sysfs_remove|tty_unregister_device|dummy_urb_enqueue|usb_(?:kill_urb|kill_anchored_urbs|control_msg|submit_urb"
    r"|hcd_submit_urb)"
)
_OTHER_MACHINES = r"do_(?:kernel|translation)_fault|do_mem_abort|el1_abort|el1h_64_sync"

PASSED_OVER = Expression(
    "|".join(
        (
            *(_SANITIZERS, _REPORTING, _ALLOCATORS, _LOCKS, _REFERENCES, _CONTAINERS),
            *(_STRINGS, _COPYING, _WAITING, _DEVICES, _OTHER_MACHINES),
        )
    )
)
"""Of every complaint; a rule can have more of its own (harness.verdict.log.first_lines)."""

WAITS = Expression(
    r"sched|_(?:slow)?lock|down|rwsem|completion|kthread|wait|synchronize|context_switch|__switch_to"
    r"|cancel_delayed_work|rcu_barrier"
)
"""How a task waits; the caller is to blame for what it waits for."""

BARRIERS: tuple[tuple[Expression, str], ...] = (
    (Expression(r"rtnl_lock"), ""),
    (Expression(r"synchronize_(?:s?rcu|net|sched)"), "synchronize_rcu"),
)
"""What half of the kernel waits for once it hangs: the waiting task is a random victim. "" keeps the name."""

DISPATCHERS = Expression(
    # From user space or a fault.
    r"do_(?:fast_)?syscall_|sysenter_dispatch|tracesys_phase2|el0_svc_handler|invoke_syscall|ret_fast_syscall"
    r"|^(?:sys_)?(?:socketpair|connect|ioctl)|do_page_fault|^page_fault$|__do_fault|exit_to_usermode|task_work_run|__fput"
    # From a thread, an interrupt or a timer.
    r"|process_one_work|^kthread$|ret_from_fork|smpboot_thread_fn|start_secondary|cpu_startup_entry|run_ksoftirqd"
    r"|do_softirq|tasklet_(?:hi_)?action|call_timer_fn|_run_timers|run_timer_softirq|hrtimer_run|smp_call_function"
    # To whoever implements a file.
    r"|vfs_(?:iter_)?(?:read|write)|do_iter_(?:read|write)|call_(?:read|write)_iter|new_sync_(?:read|write)"
    r"|vfs_(?:ioctl|open)|ksys_ioctl|compat_(?:sys_)?ioctl|blkdev_(?:driver_)?ioctl|^call_mmap|mmap_region|do_mmap"
    r"|do_dentry_open"
    # To whoever implements a socket.
    r"|^(?:compat_)?sock_(?:do_)?ioctl|^sock_(?:sendmsg|recvmsg|mmap)|^(?:__)?sock_release|sk_common_release"
    r"|^setsockopt$|(?:kernel|sock_common)_setsockopt|^listen$|kernel_listen|^accept$|kernel_accept"
    r"|netif_receive_skb|^(?:nfnetlink|rtnetlink)_rcv_msg|^netlink_dump"
)
"""Generic functions that call one of many. A stall is met somewhere in what they called: that callee has the name."""
