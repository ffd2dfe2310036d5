/* mount(2) of a FUSE file system, and what the kernel lets it do. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "keeper.h"
#include "serve.h"
#include "transport.h"

#define CAP_SYS_ADMIN 21
#define INITIAL_USER_NAMESPACE 0xEFFFFFFDu /* the number of its inode (PROC_USER_INIT_INO) */

static int without_passthrough; /* a test wants the other way */

void iofs_transport_without_passthrough(int wanted) { without_passthrough = wanted; }

/* CAP_SYS_ADMIN over the machine, and Linux 6.9. */
int mount_may_pass_through(void) {
  char line[128];
  unsigned long long effective = 0;
  unsigned major = 0, minor = 0;
  struct utsname name;
  struct stat user;
  FILE *status = fopen("/proc/self/status", "re");
  while (status && fgets(line, sizeof line, status) &&
         sscanf(line, "CapEff: %llx", &effective) != 1)
    ;
  if (status)
    fclose(status);
  if (uname(&name) < 0 || sscanf(name.release, "%u.%u", &major, &minor) != 2)
    return 0;
  return !without_passthrough && (major > 6 || (major == 6 && minor >= 9)) &&
         (effective >> CAP_SYS_ADMIN & 1) && !stat("/proc/self/ns/user", &user) &&
         user.st_ino == INITIAL_USER_NAMESPACE;
}

int mount_device(int fuse_fd, const char *path) {
  char options[160];
  snprintf(options, sizeof options,
           "fd=%d,rootmode=40000,user_id=%u,group_id=%u,allow_other,default_permissions,"
           "max_read=%u",
           fuse_fd, geteuid(), getegid(), mount_may_pass_through() ? UINT32_MAX : KEEPER_MAX_DATA);
  return mount("iommufs", path, "fuse.iommufs", MS_NOSUID | MS_NODEV, options) < 0 ? -errno : 0;
}

int iofs_transport_remap(void *address, size_t length, int fd, uint64_t offset) {
  const int both = PROT_READ | PROT_WRITE;
  void *at = mmap(address, length, both, MAP_SHARED | MAP_FIXED, fd, (off_t)offset);
  return at == MAP_FAILED ? -errno : 0;
}
