// std::map of the C++ library as a peer of the tree of areas: start to last, as one would write it.
#include <cstdint>
#include <map>

static std::map<uint64_t, uint64_t> map;

extern "C" {

void stdmap_insert(uint64_t start, uint64_t last) { map.emplace(start, last); }

// Whether an interval has this number.
int stdmap_lookup(uint64_t at) {
  auto next = map.upper_bound(at);
  return next != map.begin() && (--next)->second >= at;
}

void stdmap_erase(uint64_t start) { map.erase(start); }
}
