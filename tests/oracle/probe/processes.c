// Asks what becomes of clients as processes come, change and go: records as in probe.c. Works with
// the edu on the root bus, the nvme and the test ioctl.
//
// usage: processes
//        processes walk SEED STEPS: a random walk instead; with an odd seed in RLIMIT_MODE 1
//        processes exec IOMMUFD IOAS DEVICE, hold LINE, walker …: what these execute

#include "processes/files.h"
#include "processes/lives.h"
#include "processes/memory.h"
#include "processes/rights.h"
#include "processes/walk.h"

typedef void test(void);

static test *const tests[] = {
    test_fork_maps,          test_exit,          test_exit_private,       test_exit_access,
    test_exec,               test_vfork_exec,    test_exec_of_the_parent, test_exit_of_the_parent,
    test_threads,            test_changed_shared, test_changed_private,   test_copy_on_write,
    test_changed_file,       test_closed_by_exec, test_passed,            test_bind_by_child,
    test_closed,             test_queues,         test_returned,          test_container,
    test_container_limit,    test_limit,          test_limit_shared,      test_privileges,
    test_threads_of_users,   test_user_namespace, test_pid_namespace,     test_other_views,
    test_change_process,
};

static void find_devices(void) {
  scan();
  for (int i = 0; i < vdev_count; i++)
    if (vdev[i].vd == 0x123411e8 && !strncmp(vdev[i].bdf, "0000:00:", 8))
      edu_dev = &vdev[i];
  other_dev = find_vdev("nvme0");
  if (!edu_dev || !other_dev) {
    fprintf(stderr, "no edu or no nvme\n");
    exit(1);
  }
}

int main(int argc, char **argv) {
  setvbuf(stdout, 0, _IOFBF, 1 << 16);
  make_memory();
  if (argc > 1 && !strcmp(argv[1], "walker"))
    walk_on(argv);
  if (argc > 1 && !strcmp(argv[1], "walk")) {
    find_devices();
    walk(strtoull(argv[2], 0, 0), atoi(argv[3]));
    return 0;
  }
  if (argc == 3) {
    struct line l = {{-1, atoi(argv[2])}};
    tell(l, 1);
    await(l, 1);
    return 0;
  }
  find_devices();
  if (argc == 5) {
    section("after exec");
    edu_dev->fd = atoi(argv[4]);
    struct space s = {atoi(argv[2]), (u32)atoi(argv[3])};
    watch_iova += PAGE;
    if (map_quietly(s, WATCH, PAGE, watch_iova))
      rec("map", "", -1, 0);
    after_exec(s);
    return 0;
  }
  // Each in a process of its own, so that none is the next one's past.
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    pid_t pid = begin_child();
    if (!pid) {
      tests[i]();
      fflush(stdout);
      _exit(0);
    }
    rec_end("section ends", pid);
  }
  return 0;
}
